//! A real HTTP/1.1 server on this machine that can be told to misbehave in every way that hosts do.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::sleep,
};

/// What the server does besides sending what was asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conduct {
    /// Bytes a second on each connection.
    pub(crate) throttle: Option<u64>,
    /// Sends a single byte now and then: never silent, and never done.
    pub(crate) trickle: bool,
    /// The body ends, and the connection with it, after so many bytes; so many times.
    pub(crate) cut: Option<(u64, u32)>,
    /// After so many bytes of a body nothing comes any more, the connection stays open; so many times.
    pub(crate) stall: Option<(u64, u32)>,
    /// Answers a range with the whole file.
    pub(crate) ignore_ranges: bool,
    /// Added to the first byte of every Content-Range.
    pub(crate) wrong_start: u64,
    /// Added to the length of files with weights in every Content-Range.
    pub(crate) wrong_total: u64,
    /// Sends at most so many bytes of what was asked for, and says so.
    pub(crate) most: Option<u64>,
    /// Flips a bit of every byte in this range of the file called so.
    pub(crate) corrupt: Option<(String, Range<u64>)>,
    /// How often corruption happens; `None` for always.
    pub(crate) corrupt_times: Option<u32>,
    /// This status, so many times, with this `Retry-After`.
    pub(crate) refuse: Option<(u16, u32, Option<u64>)>,
    /// Redirects everything to the same path below this address.
    pub(crate) redirect: Option<String>,
    /// Redirects everything to itself.
    pub(crate) redirect_loop: bool,
    /// Sends no ETag.
    pub(crate) no_etag: bool,
    /// Says this about the hash of every file, as Hugging Face does.
    pub(crate) linked_etag: Option<String>,
    /// Files change after so many requests for them: another ETag, other bytes.
    pub(crate) change_after: Option<u32>,
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) range: Option<Range<u64>>,
    pub(crate) authorization: Option<String>,
    /// Body bytes that went out.
    pub(crate) sent: u64,
}

#[derive(Default)]
struct Shared {
    files: HashMap<String, Arc<Vec<u8>>>,
    conduct: Conduct,
    seen: Vec<Seen>,
    /// How many requests have been forgotten: an answer to one of them may still be on its way.
    forgotten: usize,
    open: usize,
    most_open: usize,
}

impl Shared {
    /// Notes bytes of the answer to a request that has not been forgotten.
    fn count(&mut self, number: usize, bytes: u64) {
        let seen = number.checked_sub(self.forgotten).and_then(|number| self.seen.get_mut(number));
        seen.into_iter().for_each(|seen| seen.sent += bytes);
    }
}

/// The server; it ends when dropped.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: AbortHandle,
}

impl Server {
    pub(crate) async fn start(files: &[(String, Vec<u8>)]) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), files).await
    }

    pub(crate) async fn start_at(address: SocketAddr, files: &[(String, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let files = files.iter().map(|(name, bytes)| (name.clone(), Arc::new(bytes.clone()))).collect();
        let shared = Arc::new(Mutex::new(Shared { files, ..Shared::default() }));
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, serving.clone()));
            }
        });
        Self { address, shared, task: task.abort_handle() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/models/tiny", self.address)
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut Conduct)) {
        change(&mut self.shared.lock().unwrap().conduct);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.lock().unwrap().seen.clone()
    }

    /// Body bytes sent for paths that end so.
    pub(crate) fn sent(&self, suffix: &str) -> u64 {
        self.seen().iter().filter(|seen| seen.path.ends_with(suffix)).map(|seen| seen.sent).sum()
    }

    pub(crate) fn forget(&self) {
        let mut shared = self.shared.lock().unwrap();
        shared.forgotten += shared.seen.len();
        shared.seen.clear();
        shared.most_open = 0;
    }

    /// The most answers that were under way at once.
    pub(crate) fn most_open(&self) -> usize {
        self.shared.lock().unwrap().most_open
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(mut stream: TcpStream, shared: Arc<Mutex<Shared>>) {
    let mut buffer = Vec::new();
    while let Ok(Some(head)) = head(&mut stream, &mut buffer).await {
        if !answer(&mut stream, &head, &shared).await.unwrap_or(false) {
            return;
        }
    }
}

/// A request's head, without its last empty line.
async fn head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            buffer.drain(..end + 4);
            return Ok(Some(head));
        }
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await?;
        if read == 0 || buffer.len() > 64 << 10 {
            return Ok(None);
        }
        buffer.extend_from_slice(&chunk[..read]);
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let named = |line: &&str| line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(name));
    head.lines().skip(1).find(named).and_then(|line| line.split_once(':')).map(|(_, value)| value.trim())
}

/// Answers one request; whether the connection may be used again.
async fn answer(stream: &mut TcpStream, head: &str, shared: &Arc<Mutex<Shared>>) -> io::Result<bool> {
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let range = header(head, "range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some(first.parse::<u64>().ok()?..last.parse::<u64>().ok()? + 1)
    });
    let (number, conduct, file, refused, corrupted, cut, stall, changed) = {
        let mut shared = shared.lock().unwrap();
        let authorization = header(head, "authorization").map(str::to_owned);
        shared.seen.push(Seen { path: path.clone(), range: range.clone(), authorization, sent: 0 });
        let number = shared.forgotten + shared.seen.len() - 1;
        let asked = shared.seen.iter().filter(|seen| seen.path == path).count() as u32;
        let changed = shared.conduct.change_after.is_some_and(|after| asked > after);
        let name = path.strip_prefix("/models/tiny/").unwrap_or(&path).to_owned();
        let file = shared.files.get(&name).cloned();
        let take = |times: &mut u32| {
            let left = *times > 0;
            *times = times.saturating_sub(1);
            left
        };
        let refuse = shared.conduct.refuse.as_mut();
        let refused = refuse.and_then(|(status, times, after)| take(times).then_some((*status, *after)));
        let cut = shared.conduct.cut.as_mut().and_then(|(after, times)| take(times).then_some(*after));
        let stall = shared.conduct.stall.as_mut().and_then(|(after, times)| take(times).then_some(*after));
        let hits = |conduct: &Conduct| {
            let corrupt = conduct.corrupt.as_ref().filter(|(file, _)| *file == name);
            corrupt.is_some_and(|(_, bad)| range.as_ref().is_none_or(|r| r.start < bad.end && bad.start < r.end))
        };
        let conduct = shared.conduct.clone();
        let corrupted = hits(&conduct) && shared.conduct.corrupt_times.as_mut().is_none_or(take);
        (number, conduct, file, refused, corrupted, cut, stall, changed)
    };
    let empty = |status: u16, more: &str| format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n{more}\r\n");
    if let Some((status, after)) = refused {
        let after = after.map_or(String::new(), |seconds| format!("Retry-After: {seconds}\r\n"));
        stream.write_all(empty(status, &after).as_bytes()).await?;
        return Ok(true);
    }
    let linked = conduct.linked_etag.as_ref().map_or(String::new(), |etag| format!("X-Linked-ETag: \"{etag}\"\r\n"));
    if conduct.redirect_loop || conduct.redirect.is_some() {
        let to = conduct.redirect.map_or(path.clone(), |base| {
            format!("{base}{}?signature=secret", path.strip_prefix("/models/tiny").unwrap_or(&path))
        });
        stream.write_all(empty(302, &format!("Location: {to}\r\n{linked}")).as_bytes()).await?;
        return Ok(true);
    }
    // A signed address has a query.
    let plain = path.split('?').next().unwrap_or_default().trim_start_matches("/models/tiny/").to_owned();
    let Some(file) = file.or_else(|| shared.lock().unwrap().files.get(&plain).cloned()) else {
        stream.write_all(empty(404, "").as_bytes()).await?;
        return Ok(true);
    };
    let mut bytes = file.as_ref().clone();
    if let Some((_, bad)) = conduct.corrupt.as_ref().filter(|_| corrupted) {
        bytes[bad.start as usize..bad.end as usize].iter_mut().for_each(|byte| *byte ^= 0x10);
    }
    let mut etag = format!("\"{}-{}\"", plain, bytes.len());
    if changed {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        etag = "\"changed\"".to_owned();
    }
    let date = format!("Wed, 01 Jan 202{} 00:00:00 GMT", if changed { 6 } else { 5 });
    let same = header(head, "if-range").is_none_or(|before| before == etag || before == date);
    let length = bytes.len() as u64;
    let whole = conduct.ignore_ranges || !same;
    let mut part = range.clone().filter(|_| !whole).unwrap_or(0..length);
    part.end = part.end.min(length);
    if part.start >= part.end {
        let more = format!("Content-Range: bytes */{length}\r\n");
        stream.write_all(empty(416, &more).as_bytes()).await?;
        return Ok(true);
    }
    part.end = part.end.min(conduct.most.map_or(part.end, |most| part.start + most));
    let etag = if conduct.no_etag { String::new() } else { format!("ETag: {etag}\r\n") };
    let etag = format!("{etag}Last-Modified: {date}\r\n");
    let body = &bytes[part.start as usize..part.end as usize];
    let mut answer = format!(
        "HTTP/1.1 {}\r\nContent-Length: {}\r\n{etag}{linked}",
        if whole || range.is_none() { "200 OK" } else { "206 Partial Content" },
        body.len()
    );
    if !whole && range.is_some() {
        let first = part.start + conduct.wrong_start;
        let added = if plain.ends_with(".json") { 0 } else { conduct.wrong_total };
        answer += &format!("Content-Range: bytes {first}-{}/{}\r\n", part.end - 1, length + added);
    }
    stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
    {
        let mut shared = shared.lock().unwrap();
        shared.open += 1;
        shared.most_open = shared.most_open.max(shared.open);
    }
    let sent = send(stream, body, &conduct, cut, stall, |bytes| shared.lock().unwrap().count(number, bytes)).await;
    shared.lock().unwrap().open -= 1;
    sent
}

async fn send(
    stream: &mut TcpStream,
    body: &[u8],
    conduct: &Conduct,
    cut: Option<u64>,
    stall: Option<u64>,
    mut count: impl FnMut(u64),
) -> io::Result<bool> {
    if conduct.trickle {
        for byte in body.chunks(1) {
            stream.write_all(byte).await?;
            count(1);
            sleep(Duration::from_millis(100)).await;
        }
    }
    // Small steps under a throttle, so that little is on its way when a client dies.
    let step = if conduct.throttle.is_some() { 4 << 10 } else { 64 << 10 };
    let mut sent = 0u64;
    for chunk in body.chunks(step) {
        let left = cut.or(stall).map_or(chunk.len() as u64, |after| after.saturating_sub(sent));
        let now = &chunk[..chunk.len().min(left as usize)];
        stream.write_all(now).await?;
        sent += now.len() as u64;
        count(now.len() as u64);
        if now.len() < chunk.len() {
            if stall.is_some() {
                sleep(Duration::from_secs(3600)).await;
            }
            return Ok(false);
        }
        if let Some(rate) = conduct.throttle {
            sleep(Duration::from_secs_f64(chunk.len() as f64 / rate as f64)).await;
        }
    }
    Ok(true)
}
