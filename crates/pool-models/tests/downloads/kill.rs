//! kill -9 at random moments, power losses, and other processes: this test binary runs itself as the process that
//! downloads.

use std::{
    io::{Seek, SeekFrom, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use pool_models::{Cache, DownloadState, Manifest, ManifestOptions, Model, Wanted};

use crate::{
    assert_same, fetched,
    models::{self, Numbers, gguf, manifest, shard, single},
    server::Server,
};

/// What the child is told: the cache, the manifest's hash there, the server's address.
const CHILD: &str = "POOL_MODELS_DOWNLOAD_CHILD";
/// What the child on a full disk is told: the disk, the manifest's file, the server's address.
const FULL_DISK: &str = "POOL_MODELS_FULL_DISK_CHILD";
/// Says that a machine that lets nobody mount a disk need not try.
const NO_DISK: &str = "POOL_MODELS_NO_DISK";
const CONNECTIONS: usize = 2;
const SMALL_PIECE: u32 = 16 << 10;

/// The process that is killed.
#[tokio::test]
#[ignore = "the other tests start it as a process of its own"]
async fn child() {
    let told = std::env::var(CHILD).expect("another test starts this one and tells it what to do");
    let mut told = told.lines();
    let (root, hash, url) = (told.next().unwrap(), told.next().unwrap(), told.next().unwrap());
    let cache = Cache::open(root).unwrap();
    let manifest = cache.manifest(hash.parse().unwrap()).unwrap();
    let options = pool_models::DownloadOptions { connections: CONNECTIONS, ..crate::options() };
    let downloads = pool_models::Downloads::start(cache, options, crate::plenty()).unwrap();
    let wanted = Wanted::everything(&manifest.config);
    let mirrors = vec![pool_models::Mirror::new(url).unwrap()];
    let wish =
        pool_models::Download { manifest: manifest.into(), signature: None, owner: None, wanted, mirrors, priority: 0 };
    let id = downloads.add(wish).await.unwrap();
    let ended = downloads.ended(id).await.unwrap();
    downloads.stop().await;
    println!("ended: {ended}");
    // What the parent looks at.
    std::process::exit(if ended.state == DownloadState::Done { 77 } else { 78 });
}

/// This test binary as a process that downloads the whole model into a cache and ends with 77.
pub(crate) fn command(cache: &Cache, manifest: &Manifest, url: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kill::child", "--nocapture", "--ignored"]);
    let root = cache.root().to_str().unwrap();
    command.env(CHILD, format!("{root}\n{}\n{}", manifest.hash(), url));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

async fn wait(child: &mut Child) -> i32 {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the child ends within a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn total(manifest: &Manifest) -> u64 {
    manifest.items(Wanted::everything(&manifest.config)).iter().map(|item| item.content.length).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_lose_nothing_but_the_pieces_in_flight() {
    const KILLS: u32 = 100;
    let seed = 0x6b69_6c6c;
    println!("seed {seed:#x}");
    let mut numbers = Numbers(seed);
    let (mut kills, mut round) = (0, 0);
    while kills < KILLS {
        round += 1;
        let files = if round % 2 == 0 { gguf(100 + round) } else { single(100 + round) };
        let (folder, _) = manifest(&files);
        let path = models::write(folder.path(), &files);
        let small = ManifestOptions { piece_bytes: SMALL_PIECE, ..ManifestOptions::default() };
        let manifest = Manifest::of(&path, &small).unwrap();
        let server = Server::start(&files).await;
        server.behave(|conduct| conduct.throttle = Some(2_000_000));
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        cache.add(&manifest, None).unwrap();
        let mut killed_here = 0u64;
        loop {
            let mut child = command(&cache, &manifest, &server.url()).spawn().unwrap();
            let when = Duration::from_millis(10 + numbers.next() % 240);
            tokio::time::sleep(when).await;
            if kills >= KILLS || child.try_wait().unwrap().is_some() {
                let code = wait(&mut child).await;
                assert_eq!(code, 77, "a download that is left alone gets done");
                break;
            }
            child.kill().unwrap(); // SIGKILL
            child.wait().unwrap();
            (kills, killed_here) = (kills + 1, killed_here + 1);
        }
        let wanted = Wanted::everything(&manifest.config);
        let cached = Model::open(cache.model_path(manifest.hash())).unwrap();
        assert_same(&Model::open(&path).unwrap(), &cached, wanted);
        let verified = cache.verify(manifest.hash()).unwrap();
        assert!(verified.broken.is_empty() && verified.missing == 0, "{verified:?}");
        assert_eq!(verified.bytes, total(&manifest), "every byte is there and right");
        // In flight are one piece a connection, and what the socket holds of the next.
        let twice = server.sent("").saturating_sub(total(&manifest));
        let in_flight = CONNECTIONS as u64 * u64::from(2 * SMALL_PIECE);
        assert!(twice <= killed_here * in_flight, "{twice} bytes came twice in {killed_here} kills");
        println!(
            "{killed_here} kills: {twice} bytes came twice, {} a kill",
            twice.checked_div(killed_here).unwrap_or(0)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_fill_one_cache_together() {
    let files = single(120);
    let (folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    server.behave(|conduct| conduct.throttle = Some(1_000_000));
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    cache.add(&manifest, None).unwrap();
    let mut children: Vec<Child> = (0..2).map(|_| command(&cache, &manifest, &server.url()).spawn().unwrap()).collect();
    for child in &mut children {
        assert_eq!(wait(child).await, 77, "both get done");
    }
    let wanted = Wanted::everything(&manifest.config);
    let cached = Model::open(cache.model_path(manifest.hash())).unwrap();
    assert_same(&Model::open(folder.path()).unwrap(), &cached, wanted);
    let twice = server.sent("").saturating_sub(total(&manifest));
    println!("{twice} of {} bytes came to both processes", total(&manifest));
    assert!(server.most_open() > CONNECTIONS, "both were fetching at the same time");
    // A request that was under way when the other process took the next tensor may bring a few pieces in vain.
    assert!(twice <= total(&manifest) / 4, "{twice} bytes came twice: each part has one writer");
}

/// The files in a folder of the cache.
fn list(cache: &Cache, folder: &str, extension: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(cache.root().join(folder)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_power_loss_spoils_is_fetched_again_and_nothing_else() {
    let files = single(121);
    let (folder, _) = manifest(&files);
    let small = ManifestOptions { piece_bytes: SMALL_PIECE, ..ManifestOptions::default() };
    let manifest = Manifest::of(folder.path(), &small).unwrap();
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let wanted = shard(&manifest, 1, 2);
    server.behave(|conduct| conduct.throttle = Some(400_000));
    let downloads = crate::start(&cache);
    downloads.add(crate::download(&manifest, wanted, &[&server])).await.unwrap();
    let before = crate::until_kept(&cache, 200_000).await;
    // When this returns, nothing is written any more and every part has been let go of.
    downloads.stop().await;

    // The disk lost a recorded piece, and half an entry of the record.
    let parts = list(&cache, "partial", "part");
    let part = parts.into_iter().find(|part| part.with_extension("done").exists()).expect("one was in the making");
    let record = std::fs::read(part.with_extension("done")).unwrap();
    let piece = u32::from_le_bytes(record[..4].try_into().unwrap());
    let mut file = std::fs::File::options().write(true).open(&part).unwrap();
    file.seek(SeekFrom::Start(u64::from(piece * SMALL_PIECE))).unwrap();
    file.write_all(&[0; 100]).unwrap();
    std::fs::write(part.with_extension("done"), [&record[..], &[1; 17]].concat()).unwrap();
    let spoiled = u64::from(SMALL_PIECE);
    server.behave(|conduct| conduct.throttle = None);
    server.forget();
    let ended = fetched(&cache, &manifest, wanted, &[&server]).await;
    assert_same(&Model::open(folder.path()).unwrap(), &Model::open(&ended.path).unwrap(), wanted);
    let needed: u64 = manifest.items(wanted).iter().map(|item| item.content.length).sum();
    let again = server.sent("");
    let most = needed - before + spoiled + u64::from(SMALL_PIECE);
    assert!(again >= spoiled && again <= most, "{again} bytes came where {most} were lost or had never been there");
    assert!(cache.verify(manifest.hash()).unwrap().broken.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_part_is_gone_is_not_believed() {
    let files = single(125);
    let (folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    server.behave(|conduct| conduct.throttle = Some(400_000));
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let wanted = shard(&manifest, 1, 2);
    let downloads = crate::start(&cache);
    downloads.add(crate::download(&manifest, wanted, &[&server])).await.unwrap();
    crate::until_kept(&cache, 300_000).await;
    downloads.stop().await;
    let parts = list(&cache, "partial", "part");
    assert!(parts.iter().any(|part| part.with_extension("done").exists()), "something was in the making");
    parts.iter().for_each(|part| std::fs::remove_file(part).unwrap());
    server.behave(|conduct| conduct.throttle = None);
    let ended = fetched(&cache, &manifest, wanted, &[&server]).await;
    assert_same(&Model::open(folder.path()).unwrap(), &Model::open(&ended.path).unwrap(), wanted);
    assert!(list(&cache, "partial", "done").is_empty(), "no record is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_tensor_that_rots_on_the_disk_is_found_and_fetched_again() {
    let files = gguf(122);
    let (folder, manifest) = manifest(&files);
    let path = models::write(folder.path(), &files);
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let wanted = shard(&manifest, 0, 1);
    fetched(&cache, &manifest, wanted, &[&server]).await;
    let tensor = manifest.tensors.iter().find(|tensor| tensor.name == "blk.0.ffn_down.weight").unwrap();
    let name = tensor.content.key.to_string().trim_start_matches("0x").to_owned();
    let object = cache.root().join("objects").join(&name[..2]).join(&name);
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[70_000] ^= 1;
    std::fs::write(&object, &bytes).unwrap();
    let verified = cache.verify(manifest.hash()).unwrap();
    assert_eq!(verified.broken, ["blk.0.ffn_down.weight"]);
    server.forget();
    let ended = fetched(&cache, &manifest, wanted, &[&server]).await;
    assert_eq!(server.sent(""), tensor.content.length, "that tensor and no other");
    assert_same(&Model::open(&path).unwrap(), &Model::open(&ended.path).unwrap(), wanted);
}

/// Downloads into a disk that is full until this removes a file from it.
#[tokio::test]
#[ignore = "another test starts it on a disk of its own"]
async fn child_on_a_full_disk() {
    let told = std::env::var(FULL_DISK).expect("another test starts this one and tells it what to do");
    let mut told = told.lines();
    let (root, manifest, url) = (told.next().unwrap(), told.next().unwrap(), told.next().unwrap());
    let manifest = Manifest::parse(&std::fs::read(manifest).unwrap()).unwrap();
    let cache = Cache::open(Path::new(root).join("cache")).unwrap();
    let filler = Path::new(root).join("filler");
    std::fs::write(&filler, vec![1; 3 << 20]).unwrap();
    let downloads = crate::start(&cache);
    let mirrors = vec![pool_models::Mirror::new(url).unwrap()];
    let wanted = shard(&manifest, 0, 2);
    let hash = manifest.hash();
    let wish =
        pool_models::Download { manifest: manifest.into(), signature: None, owner: None, wanted, mirrors, priority: 0 };
    let id = downloads.add(wish).await.unwrap();
    let waiting = crate::until(&downloads, "it waits", |status| status.state == DownloadState::Waiting).await;
    println!("waiting: {waiting}");
    std::fs::remove_file(filler).unwrap();
    let ended = downloads.ended(id).await.unwrap();
    println!("ended: {ended}, {:?}", cache.verify(hash).unwrap());
    std::process::exit(if ended.state == DownloadState::Done { 77 } else { 78 });
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_really_is_full_is_one_sentence_and_recovers() {
    let files = single(124);
    let (_folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let described = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(described.path(), manifest.to_bytes()).unwrap();
    let disk = root.path().to_str().unwrap();
    // A disk of five megabytes that only this process and its children see.
    let script = "mount -t tmpfs -o size=5m pool \"$1\" || exit 79; shift; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", disk]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "kill::child_on_a_full_disk", "--nocapture", "--ignored"]);
    command.env(FULL_DISK, format!("{disk}\n{}\n{}", described.path().display(), server.url()));
    let out = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let may_mount = out.status.code().is_some_and(|code| [77, 78, 101].contains(&code));
    if !may_mount && std::env::var_os(NO_DISK).is_some() {
        return eprintln!("{NO_DISK} is set, and this machine lets nobody mount a disk of their own: not tried");
    }
    assert!(may_mount, "no disk could be mounted; where that is forbidden, set {NO_DISK}=1: {out:?}");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(77), "{said} {}", String::from_utf8_lossy(&out.stderr));
    let sentence =
        "the disk is full, so the download waits; free some space or remove a model, and it goes on by itself";
    assert!(said.contains(sentence), "{said}");
    assert!(said.contains("broken: []"), "a write that failed in the middle spoils nothing: {said}");
}

/// A limit on the size of files is what a file system without large files looks like.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_forbids_large_files_is_one_sentence() {
    let files = single(123);
    let (_folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    cache.add(&manifest, None).unwrap();
    let child = command(&cache, &manifest, &server.url());
    // An ignored signal stays ignored in the program that is started, which then gets the error instead.
    let script = "trap '' XFSZ; ulimit -f 128; exec \"$0\" \"$@\"";
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(script).arg(child.get_program()).args(child.get_args());
    limited.envs(child.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let out = tokio::task::spawn_blocking(move || limited.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(78), "{said}");
    let sentence =
        "the disk's format or a limit on this program forbids files of that size; move the models to another disk";
    assert!(said.contains(sentence), "{said}");
    let verified = cache.verify(manifest.hash()).unwrap();
    assert!(verified.broken.is_empty(), "what fitted is right: {verified:?}");
    let large = manifest.tensors.iter().filter(|tensor| tensor.content.length > 128 * 512).count();
    assert!(large > 0 && verified.missing >= large, "{large} tensors did not fit: {verified:?}");
}
