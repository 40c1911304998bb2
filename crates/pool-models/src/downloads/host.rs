//! One host: where its files are, and one ranged request to it, with every claim it makes about its answer checked.

use std::{fmt, ops::Range, time::Duration};

use alloy_primitives::B256;
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_RANGE, DATE, ETAG, HeaderMap, HeaderValue, IF_RANGE,
        LAST_MODIFIED, LOCATION, RANGE, RETRY_AFTER,
    },
};
use tokio::time::{Instant, timeout};

use super::error::{DownloadError, HostError};

const MOST_REDIRECTS: usize = 5;
/// A host that asks for a longer pause is asked again after this one.
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

const LONGEST_TOKEN: usize = 4096;
/// An answer that brings less than this in the time a stalled one is given counts as stalled.
const TRICKLE_BYTES: u64 = 16 << 10;

/// A secret that a host knows us by. Never printed, never sent to another host.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

impl AccessToken {
    /// Takes the token as the host gave it: one word of visible ASCII characters.
    pub fn new(token: impl AsRef<str>) -> Result<Self, DownloadError> {
        let token = token.as_ref().trim();
        if token.is_empty() || token.len() > LONGEST_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(DownloadError::Token);
        }
        Ok(Self(token.to_owned()))
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(not shown)")
    }
}

/// A host that has the model's files below one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    base: Url,
    token: Option<AccessToken>,
}

impl Mirror {
    /// The host whose files lie below that address, `http` or `https`.
    pub fn new(address: &str) -> Result<Self, DownloadError> {
        let wrong = || DownloadError::Address(address.chars().take(200).collect());
        let base = Url::parse(address).map_err(|_| wrong())?;
        let plain = base.username().is_empty() && base.password().is_none() && base.query().is_none();
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() || !plain || base.fragment().is_some() {
            return Err(wrong());
        }
        Ok(Self { base, token: None })
    }

    /// A repository at Hugging Face, at a branch, a tag or a commit.
    pub fn hugging_face(repository: &str, revision: &str) -> Result<Self, DownloadError> {
        Self::new(&format!("https://huggingface.co/{repository}/resolve/{revision}"))
    }

    /// Sends this token along: to this host only, and only over a secure connection or to this machine.
    #[must_use]
    pub fn with_token(mut self, token: AccessToken) -> Self {
        self.token = Some(token);
        self
    }

    /// The host's name and port, as messages say it.
    pub fn host(&self) -> String {
        host_of(&self.base)
    }

    /// The whole address, for naming content that has no hash.
    pub(crate) fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        url
    }

    fn authorization(&self, url: &Url) -> Option<HeaderValue> {
        let token = self.token.as_ref()?;
        let same = url.origin() == self.base.origin();
        let loopback = match url.host_str().unwrap_or_default().trim_matches(['[', ']']) {
            "localhost" => true,
            host => host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
        };
        if !same || !(url.scheme() == "https" || loopback) {
            return None;
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// What to ask a host for.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    /// The file.
    pub(crate) path: &'a str,
    /// Which bytes.
    pub(crate) range: Range<u64>,
    /// How long the file is, where that is known.
    pub(crate) length: Option<u64>,
    /// The ETag it had before.
    pub(crate) etag: Option<&'a str>,
    /// Takes the date of its last change for want of an ETag: where no hash tells whether it has changed.
    pub(crate) dated: bool,
}

/// An answer whose head has been checked.
pub(crate) struct Reply {
    response: Response,
    host: String,
    path: String,
    stall: Duration,
    /// How long it has been waited for since it last brought [`TRICKLE_BYTES`], and what has come since.
    waited: Duration,
    trickled: u64,
    /// The bytes that come: what was asked for or a beginning of it; or the whole file, from a host that ignores ranges.
    pub(crate) range: Range<u64>,
    /// The host says that it sends a part, as it was asked to.
    pub(crate) partial: bool,
    /// The file's length, where the host says it.
    pub(crate) length: Option<u64>,
    /// Its ETag, or what stands in for it.
    pub(crate) etag: Option<String>,
    /// SHA-256 of the whole file, where the host publishes it as Hugging Face does.
    pub(crate) sha256: Option<B256>,
}

/// The client, without any state of its own.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    client: Client,
    stall: Duration,
}

impl Http {
    pub(crate) fn new(stall: Duration, connections: usize) -> Result<Self, DownloadError> {
        // Over HTTP/1 each request has a connection of its own: one that stalls holds up no other.
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .http1_only()
            .connect_timeout(stall)
            .pool_max_idle_per_host(connections)
            .user_agent(concat!("computepool/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(DownloadError::Client)?;
        Ok(Self { client, stall })
    }

    /// Asks a host for some bytes of a file, and follows it where it sends us.
    pub(crate) async fn ask(&self, mirror: &Mirror, ask: &Ask<'_>) -> Result<Reply, HostError> {
        let mut url = mirror.url(ask.path);
        let mut sha256 = None;
        for _ in 0..=MOST_REDIRECTS {
            let response = self.send(mirror, &url, ask).await?;
            sha256 = sha256.or_else(|| published_sha256(response.headers()));
            let status = response.status();
            let redirected = [301, 302, 303, 307, 308].contains(&status.as_u16());
            if !redirected {
                return self.check(&url, ask, response, sha256);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| follow(&url, location));
            let lost = || HostError::Location { host: host_of(&url), path: ask.path.to_owned() };
            url = next.ok_or_else(lost)?;
        }
        Err(HostError::Redirects { host: mirror.host(), path: ask.path.to_owned() })
    }

    async fn send(&self, mirror: &Mirror, url: &Url, ask: &Ask<'_>) -> Result<Response, HostError> {
        let last = ask.range.end.saturating_sub(1);
        let mut request = self
            .client
            .get(url.clone())
            .header(RANGE, format!("bytes={}-{last}", ask.range.start))
            .header(ACCEPT_ENCODING, "identity");
        // A weak tag cannot be asked for; it is compared below.
        if let Some(etag) = ask.etag.filter(|etag| !etag.starts_with("W/")) {
            request = request.header(IF_RANGE, etag);
        }
        if let Some(authorization) = mirror.authorization(url) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let host = host_of(url);
        match timeout(self.stall, request.send()).await {
            Err(_) => Err(HostError::Stalled { host, after: self.stall }),
            Ok(Err(source)) if is_about_a_certificate(&source) => {
                Err(HostError::Certificate { host, source: source.without_url() })
            }
            Ok(Err(source)) => Err(HostError::Unreachable { host, source: source.without_url() }),
            Ok(Ok(response)) => Ok(response),
        }
    }

    fn check(&self, url: &Url, ask: &Ask<'_>, response: Response, sha256: Option<B256>) -> Result<Reply, HostError> {
        let (host, path) = (host_of(url), ask.path.to_owned());
        let status = response.status();
        let headers = response.headers();
        let wrong = |said: String| HostError::Range { host: host.clone(), path: path.clone(), said };
        let dated = || text(headers, LAST_MODIFIED.as_str()).filter(|_| ask.dated);
        let etag = text(headers, ETAG.as_str()).or_else(dated).filter(|etag| !etag.is_empty());
        let encoded = text(headers, CONTENT_ENCODING.as_str()).is_some_and(|encoding| encoding != "identity");
        match status {
            StatusCode::PARTIAL_CONTENT | StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => return Err(HostError::NotFound { host, path }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(HostError::Forbidden { host, path, status: status.as_u16() });
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let said = text(headers, CONTENT_RANGE.as_str()).unwrap_or_default();
                let found = said.strip_prefix("bytes */").and_then(|length| length.parse().ok());
                let known = ask.length.zip(found).filter(|(expected, found)| expected != found);
                let Some((expected, found)) = known else { return Err(wrong(said.chars().take(80).collect())) };
                return Err(HostError::Length { host, path, expected, found });
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let after = pause_asked_for(headers);
                return Err(HostError::Busy { host, status: status.as_u16(), after });
            }
            StatusCode::REQUEST_TIMEOUT => return Err(HostError::Fault { host, status: status.as_u16() }),
            status if status.is_server_error() => return Err(HostError::Fault { host, status: status.as_u16() }),
            status => return Err(HostError::Status { host, path, status: status.as_u16() }),
        }
        if encoded {
            return Err(wrong("in a compressed form".to_owned()));
        }
        // A changed file is answered with a new tag, or whole where the range was bound to the old tag.
        if let (Some(before), Some(now)) = (ask.etag, &etag)
            && before != now
        {
            return Err(HostError::Changed { host, path });
        }
        let content_length = text(headers, "content-length").and_then(|length| length.parse::<u64>().ok());
        let (range, length) = if status == StatusCode::OK {
            (0..content_length.or(ask.length).unwrap_or(u64::MAX), content_length)
        } else {
            let said = text(headers, CONTENT_RANGE.as_str()).unwrap_or_else(|| "without saying which".to_owned());
            let shown = || said.chars().take(80).collect::<String>();
            let (range, length) = parse_content_range(&said).ok_or_else(|| wrong(shown()))?;
            let fits = range.start == ask.range.start && range.end <= ask.range.end;
            let agrees = content_length.is_none_or(|length| length == range.end - range.start);
            if !fits || !agrees || length.is_some_and(|length| range.end > length) {
                return Err(wrong(shown()));
            }
            (range, length)
        };
        if let (Some(expected), Some(found)) = (ask.length, length)
            && expected != found
        {
            return Err(HostError::Length { host, path, expected, found });
        }
        let partial = status == StatusCode::PARTIAL_CONTENT;
        let (stall, waited, trickled) = (self.stall, Duration::ZERO, 0);
        Ok(Reply { response, host, path, stall, waited, trickled, range, partial, length, etag, sha256 })
    }
}

impl Reply {
    /// Whose answer it is.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The next bytes, or `None` at the end. Only the time in here is the host's: what is done with the bytes in between
    /// is not.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, HostError> {
        let began = Instant::now();
        let chunk = match timeout(self.stall, self.response.chunk()).await {
            Err(_) => return Err(self.stalled()),
            Ok(Err(_)) => return Err(self.cut()),
            Ok(Ok(chunk)) => chunk,
        };
        self.waited += began.elapsed();
        self.trickled += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if self.trickled >= TRICKLE_BYTES {
            (self.waited, self.trickled) = (Duration::ZERO, 0);
        } else if self.waited > self.stall && chunk.is_some() {
            return Err(self.stalled());
        }
        Ok(chunk.map(Into::into))
    }

    /// The error of an answer that ended early.
    pub(crate) fn cut(&self) -> HostError {
        HostError::Cut { host: self.host.clone(), path: self.path.clone() }
    }

    /// The error of an answer that was never meant to bring a whole piece.
    pub(crate) fn too_little(&self) -> HostError {
        let said = format!("only {} bytes", self.range.end - self.range.start);
        HostError::Range { host: self.host.clone(), path: self.path.clone(), said }
    }

    fn stalled(&self) -> HostError {
        HostError::Stalled { host: self.host.clone(), after: self.stall }
    }

    /// Everything, where it is not more than `most`.
    pub(crate) async fn all(mut self, most: u64) -> Result<Vec<u8>, HostError> {
        let mut bytes = Vec::new();
        let expected = self.range.end - self.range.start;
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() as u64 + chunk.len() as u64 > most {
                let most = pool_types::ByteSize(most);
                return Err(HostError::TooLarge { host: self.host, path: self.path, most });
            }
            bytes.extend_from_slice(&chunk);
        }
        if self.range.end != u64::MAX && (bytes.len() as u64) < expected {
            return Err(self.cut());
        }
        Ok(bytes)
    }
}

/// How long a host wants us to wait: in seconds, or until a time by its own clock.
fn pause_asked_for(headers: &HeaderMap) -> Option<Duration> {
    let said = text(headers, RETRY_AFTER.as_str())?;
    let seconds = said.trim().parse().ok().map(Duration::from_secs);
    let by_its_clock = || {
        let now = httpdate::parse_http_date(&text(headers, DATE.as_str())?).ok()?;
        httpdate::parse_http_date(said.trim()).ok()?.duration_since(now).ok()
    };
    seconds.or_else(by_its_clock).map(|pause| pause.min(LONGEST_PAUSE))
}

/// Where a redirect leads, unless from a secure place to one that is not, or out of the web.
fn follow(from: &Url, location: &str) -> Option<Url> {
    let next = from.join(location).ok()?;
    let secure = next.scheme() == "https" || (next.scheme() == "http" && from.scheme() == "http");
    (secure && next.has_host()).then_some(next)
}

/// The library tells it in words only.
fn is_about_a_certificate(error: &reqwest::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.to_string().contains("certificate") {
            return true;
        }
        cause = error.source();
    }
    false
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// `bytes 0-99/1000` or `bytes 0-99/*`.
fn parse_content_range(said: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, length) = said.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let length = if length.trim() == "*" { None } else { Some(length.trim().parse().ok()?) };
    (first <= last).then_some((first..last.checked_add(1)?, length))
}

/// Hugging Face says the hash of a large file as the ETag of what it links to.
fn published_sha256(headers: &HeaderMap) -> Option<B256> {
    text(headers, "x-linked-etag")?.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_web_addresses_are_hosts() {
        for bad in
            ["", "models.example", "ftp://a.example/x", "https://user:secret@a.example/", "https://a.example/?x=1"]
        {
            assert!(Mirror::new(bad).is_err(), "{bad:?} is not the address of a host");
        }
        let mirror = Mirror::new("https://a.example:8443/models/").expect("it is one");
        assert_eq!(mirror.host(), "a.example:8443");
        assert_eq!(mirror.url("sub dir/m.gguf").as_str(), "https://a.example:8443/models/sub%20dir/m.gguf");
        assert_eq!(mirror.url("../x").as_str().matches("..").count(), 0, "a path never climbs out of the address");
        let face = Mirror::hugging_face("owner/model", "main").expect("it is one");
        assert_eq!(face.url("config.json").as_str(), "https://huggingface.co/owner/model/resolve/main/config.json");
    }

    #[test]
    fn a_token_goes_to_its_own_host_over_a_secure_connection_and_nowhere_else() {
        let with = |address: &str| {
            Mirror::new(address).expect("a host").with_token(AccessToken::new("hf_secret").expect("a token"))
        };
        let sent = |mirror: &Mirror, to: &str| mirror.authorization(&Url::parse(to).expect("an address")).is_some();
        let mirror = with("https://a.example/models");
        assert!(sent(&mirror, "https://a.example/elsewhere"));
        for other in
            ["https://b.example/", "http://a.example/", "https://a.example:444/", "https://a.example.evil.example/"]
        {
            assert!(!sent(&mirror, other), "{other} must not see the token");
        }
        assert!(!sent(&with("http://a.example/"), "http://a.example/x"), "anybody on the way could read it");
        assert!(sent(&with("http://127.0.0.1:9/"), "http://127.0.0.1:9/x"), "nobody is on the way");
        assert!(!format!("{mirror:?}").contains("hf_secret"), "a log would keep it");
    }

    #[test]
    fn a_token_is_one_word_that_a_header_can_carry() {
        assert!(AccessToken::new(" hf_secret\n").is_ok(), "as it is copied from a page");
        for bad in ["", "  ", "two words", "a\nb", "hf_\u{e9}", "\u{7f}", &"x".repeat(5000)] {
            let error = AccessToken::new(bad).expect_err("it is none");
            assert!(bad.trim().is_empty() || !error.to_string().contains(bad), "a token is never shown: {error}");
        }
    }

    #[test]
    fn a_pause_may_be_asked_for_in_seconds_or_by_a_clock() {
        let asked = |retry: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, retry.parse().expect("a header"));
            date.map(|date| headers.insert(DATE, date.parse().expect("a header")));
            pause_asked_for(&headers).map(|pause| pause.as_secs())
        };
        assert_eq!(asked("30", None), Some(30));
        assert_eq!(asked("999999", None), Some(15 * 60), "nobody makes us wait for days");
        let (date, later) = ("Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:29:30 GMT");
        assert_eq!(asked(later, Some(date)), Some(90), "whatever our own clock says");
        assert_eq!(asked(later, None), None);
        assert_eq!(asked(date, Some(later)), None, "a time that has passed");
        assert_eq!(asked("soon", Some(date)), None);
    }

    #[test]
    fn a_redirect_never_leaves_a_secure_connection_for_an_open_one() {
        let led = |from: &str, location: &str| {
            follow(&Url::parse(from).expect("an address"), location).map(|url| url.to_string())
        };
        assert_eq!(led("https://a.example/x", "/y?z=1").as_deref(), Some("https://a.example/y?z=1"));
        assert_eq!(led("https://a.example/x", "https://b.example/y").as_deref(), Some("https://b.example/y"));
        assert_eq!(led("http://a.example/x", "https://a.example/x").as_deref(), Some("https://a.example/x"));
        assert_eq!(led("https://a.example/x", "http://a.example/x"), None, "anybody on the way could read along");
        for elsewhere in ["ftp://b.example/", "file:///etc/passwd", "data:,x", "https://"] {
            assert_eq!(led("http://a.example/x", elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(parse_content_range("bytes 0-99/1000"), Some((0..100, Some(1000))));
        assert_eq!(parse_content_range("bytes 5-5/*"), Some((5..6, None)));
        for bad in
            ["", "bytes", "bytes 5-4/10", "bytes a-b/c", "items 0-1/2", "bytes 0-18446744073709551615/*", "bytes */5"]
        {
            assert_eq!(parse_content_range(bad), None, "{bad:?}");
        }
    }
}
