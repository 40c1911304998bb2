//! Keeps the house in the shape that ARCHITECTURE.md describes: which crate may import which, where the heavy
//! dependencies live, which crates are pure, which licences may come in, and what may be committed.
//!
//! Everything is read from `cargo metadata`, `deny.toml` and `git ls-files`.

#[path = "support/sources.rs"]
mod sources;
#[path = "support/spdx.rs"]
mod spdx;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use serde::Deserialize;

/// The workspace from the ground up: a crate may import only crates that stand above it in this list.
const LAYERS: [&str; 23] = [
    "pool-types",
    "pool-wire",
    "pool-policy",
    "pool-coalition",
    "pool-models",
    "pool-engine",
    "pool-link",
    "pool-sense",
    "pool-store",
    "pool-journal",
    "pool-chain",
    "pool-attest",
    "pool-wallet",
    "pool-shard",
    "pool-node",
    "pool-orchestrator",
    "pool-api",
    "pool-testkit",
    "src-tauri",
    "xtask",
    "computepool",
    "computepool-fuzz",
    "computepool-tests",
];

/// Crates any other may use in its tests, wherever they stand.
const TEST_ONLY: [&str; 1] = ["pool-testkit"];

/// Heavy dependencies and the only crates that may name them. A trailing `*` stands for any ending.
const HOMES: [(&str, &[&str]); 20] = [
    ("candle-*", &["pool-engine", "xtask"]),
    ("cudarc", &["pool-engine"]),
    ("webrtc", &["pool-link"]),
    ("rtc", &["pool-link"]),
    ("quinn", &["pool-link"]),
    ("sqlx", &["pool-store", "pool-journal"]),
    ("sysinfo", &["pool-sense"]),
    ("x11rb", &["pool-sense"]),
    ("zbus", &["pool-sense"]),
    ("nvml-wrapper", &["pool-sense"]),
    ("wayland-*", &["pool-sense"]),
    ("windows*", &["pool-sense"]),
    ("tauri*", &["src-tauri"]),
    ("axum", &["pool-orchestrator", "pool-api"]),
    ("tokenizers", &["pool-models", "xtask"]),
    ("minijinja*", &["pool-models", "xtask"]),
    ("dcap-qvl", &["pool-attest"]),
    ("dstack-sdk", &["pool-attest"]),
    ("alloy", &["pool-chain", "pool-wallet"]),
    ("alloy-*", &["pool-chain", "pool-wallet"]),
];

/// alloy's light crates: addresses and signatures, wanted everywhere.
const ANYWHERE: [&str; 4] = ["alloy-primitives", "alloy-sol-types", "alloy-signer", "alloy-signer-local"];

/// Crates that decide and never do: no sockets, files, clocks, threads or runtimes.
const PURE: [&str; 4] = ["pool-types", "pool-wire", "pool-policy", "pool-coalition"];
const IMPURE_CRATES: [&str; 6] = ["tokio", "mio", "socket2", "async-std", "smol", "reqwest"];
const IMPURE_PATHS: [&str; 8] = [
    "tokio",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// What a process must not even link: whoever holds keys parses no weights, whoever computes serves nobody.
const NEVER_LINKED: [(&str, &[&str]); 3] = [
    ("pool-node", &["candle-core", "pool-engine"]),
    ("pool-orchestrator", &["candle-core", "pool-engine"]),
    ("pool-shard", &["axum", "sqlx", "pool-store"]),
];

const LONGEST_SOURCE_LINES: usize = 600;
const LARGEST_FILE_BYTES: u64 = 8_500_000;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None` is a normal dependency.
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

impl Metadata {
    fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|p| self.workspace_members.contains(&p.id))
    }

    /// The names of everything that a build of `package` contains: its normal dependencies and theirs.
    fn linked_by<'a>(&'a self, package: &'a Package) -> BTreeSet<&'a str> {
        let nodes: BTreeMap<&str, &Node> = self.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let names: BTreeMap<&str, &str> = self.packages.iter().map(|p| (p.id.as_str(), p.name.as_str())).collect();
        let (mut seen, mut next) = (BTreeSet::new(), vec![package.id.as_str()]);
        while let Some(id) = next.pop() {
            if seen.insert(id) {
                let edges = nodes.get(id).into_iter().flat_map(|node| &node.deps);
                let normal = edges.filter(|edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none()));
                next.extend(normal.map(|edge| edge.pkg.as_str()));
            }
        }
        seen.into_iter().filter_map(|id| names.get(id).copied()).collect()
    }
}

impl Package {
    fn folder(&self) -> &Path {
        self.manifest_path.parent().expect("a manifest lies in a folder")
    }

    /// The name this file knows the package by: that of its folder for the desktop shell, its own otherwise.
    fn known_as(&self) -> &str {
        if self.folder().ends_with("src-tauri") { "src-tauri" } else { &self.name }
    }
}

static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_path_buf()
});

/// The dependencies of every platform, or those of this one where the others cannot be fetched.
static METADATA: LazyLock<Metadata> = LazyLock::new(|| {
    let ask = |more: &[&str]| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["metadata", "--format-version", "1", "--locked"]).args(more).current_dir(&*ROOT);
        cargo.output().expect("cargo runs")
    };
    let every_platform = ask(&[]);
    let answer = if every_platform.status.success() {
        every_platform
    } else {
        eprintln!("only this platform's dependencies are checked: {}", String::from_utf8_lossy(&every_platform.stderr));
        ask(&["--offline", "--filter-platform", "x86_64-unknown-linux-gnu"])
    };
    assert!(answer.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&answer.stderr));
    serde_json::from_slice(&answer.stdout).expect("cargo metadata writes JSON of this shape")
});

/// What git tracks.
static COMMITTED: LazyLock<Vec<PathBuf>> = LazyLock::new(|| {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached"]).current_dir(&*ROOT);
    let answer = git.output().expect("git runs: install it (`make setup`)");
    assert!(answer.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&answer.stderr));
    let listed = String::from_utf8(answer.stdout).expect("file names here are UTF-8");
    listed.split_terminator('\0').map(|name| ROOT.join(name)).filter(|path| path.is_file()).collect()
});

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|known| *known == name)
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(&*ROOT).unwrap_or(path).display().to_string()
}

fn assert_none(broken: &[String], advice: &str) {
    assert!(broken.is_empty(), "\n  {}\n{advice}\n", broken.join("\n  "));
}

#[test]
fn crates_import_only_crates_above_them() {
    let mut broken = Vec::new();
    for package in METADATA.members() {
        let Some(here) = layer(package.known_as()) else {
            broken.push(format!("{} has no place in LAYERS", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            let in_tests_only = dependency.kind.as_deref() == Some("dev");
            if in_tests_only && TEST_ONLY.contains(&dependency.name.as_str()) {
                continue;
            }
            if layer(&dependency.name).is_some_and(|there| there >= here) {
                broken.push(format!("{} imports {}, which stands below it", package.name, dependency.name));
            }
        }
    }
    assert_none(
        &broken,
        "Move the shared part into a crate further up, or turn the import around with a trait. A new crate takes its place \
         in LAYERS (tests/architecture.rs) and gets its paragraph in ARCHITECTURE.md.",
    );
}

#[test]
fn every_heavy_dependency_has_one_home() {
    let mut broken = Vec::new();
    for package in METADATA.members() {
        for dependency in package.dependencies.iter().filter(|d| !ANYWHERE.contains(&d.name.as_str())) {
            let homes = HOMES.iter().find(|(pattern, _)| matches(pattern, &dependency.name)).map(|(_, homes)| *homes);
            if let Some(homes) = homes.filter(|homes| !homes.contains(&package.known_as())) {
                let (stranger, guest) = (&package.name, &dependency.name);
                broken.push(format!("{stranger} names {guest}, whose home is {}", homes.join(", ")));
            }
        }
    }
    assert_none(&broken, "Call the home's own interface instead; if that lacks something, add it there.");
}

#[test]
fn pure_crates_reach_no_runtime() {
    let mut broken = Vec::new();
    for package in METADATA.members().filter(|p| PURE.contains(&p.name.as_str())) {
        let linked = METADATA.linked_by(package);
        for impure in IMPURE_CRATES.iter().filter(|name| linked.contains(*name)) {
            let name = &package.name;
            broken.push(format!("{name} depends on {impure} (`cargo tree -p {name} -e normal -i {impure}` shows how)"));
        }
    }
    assert_none(
        &broken,
        "A pure crate decides and never does: leave the runtime to the caller, or drop the feature that brings it.",
    );
}

#[test]
fn no_process_links_what_it_must_not_do() {
    let mut broken = Vec::new();
    for package in METADATA.members() {
        let forbidden = NEVER_LINKED.iter().filter(|(name, _)| *name == package.name).flat_map(|(_, crates)| *crates);
        let linked = METADATA.linked_by(package);
        for guest in forbidden.filter(|guest| linked.contains(*guest)) {
            broken.push(format!("{} links {guest}", package.name));
        }
    }
    assert_none(&broken, "Put the work into the process it belongs to and send a control message instead.");
}

#[test]
fn pure_crates_touch_no_file_socket_or_clock() {
    let mut broken = Vec::new();
    for package in METADATA.members().filter(|p| PURE.contains(&p.name.as_str())) {
        let source_folder = package.folder().join("src");
        let is_source = |path: &&PathBuf| {
            let is_test = |part: std::path::Component| part.as_os_str().to_string_lossy().starts_with("tests");
            path.extension().is_some_and(|e| e == "rs")
                && path.strip_prefix(&source_folder).is_ok_and(|inside| !inside.components().any(is_test))
        };
        for path in COMMITTED.iter().filter(is_source) {
            let text = fs::read_to_string(path).expect("sources are UTF-8");
            for named in sources::named_paths(&text) {
                let impure = IMPURE_PATHS.iter().any(|p| named == *p || named.starts_with(&format!("{p}::")));
                if impure || named == "std::time::*" || named == "std::*" {
                    broken.push(format!("{} names {named}", shown(path)));
                }
            }
        }
    }
    assert_none(&broken, "Take the value as an argument: the caller reads files and clocks, the pure crate decides.");
}

#[test]
fn every_licence_is_on_the_list() {
    let deny: toml::Table =
        fs::read_to_string(ROOT.join("deny.toml")).expect("deny.toml is there").parse().expect("it is TOML");
    let list = |table: &str, key: &str| -> Vec<toml::Value> {
        deny.get(table).and_then(|t| t.get(key)).and_then(|l| l.as_array()).cloned().unwrap_or_default()
    };
    let allow = list("licenses", "allow");
    let allow: BTreeSet<&str> = allow.iter().filter_map(|l| l.as_str()).collect();
    assert!(allow.contains("Apache-2.0"), "deny.toml lists [licenses] allow = [...], our own licence among them");
    for copyleft in ["GPL-3.0-only", "GPL-2.0-only", "AGPL-3.0-only", "LGPL-3.0-only", "SSPL-1.0", "BUSL-1.1"] {
        assert!(!allow.contains(copyleft), "{copyleft} would bind the whole program; it cannot be on the list");
    }
    let mut broken = Vec::new();
    for package in &METADATA.packages {
        let offered = package.license.as_deref().unwrap_or("no licence");
        if !spdx::is_allowed(offered, &|licence| allow.contains(licence)) {
            broken.push(format!("{} {}: {offered}", package.name, package.version));
        }
    }
    assert_none(
        &broken,
        "Use another crate, or, if the licence asks nothing of a program that links it, add it to [licenses] allow in deny.toml \
         and say why in the commit.",
    );
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let read =
        |path: &Path| -> toml::Table { fs::read_to_string(path).expect("readable").parse().expect("it is TOML") };
    let workspace = read(&ROOT.join("Cargo.toml"));
    let unsafe_code = workspace["workspace"]["lints"]["rust"]["unsafe_code"].as_str();
    assert_eq!(
        unsafe_code,
        Some("deny"),
        "unsafe_code is denied for the whole workspace; allow it where it is needed, with a reason"
    );
    let takes_them = |manifest: &toml::Table| {
        manifest.get("lints").and_then(|l| l.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
    };
    let without: Vec<String> = (METADATA.members())
        .filter(|package| !takes_them(&read(&package.manifest_path)))
        .map(|package| shown(&package.manifest_path))
        .collect();
    assert_none(&without, "Add to each manifest:\n  [lints]\n  workspace = true");
}

#[test]
fn committed_files_stay_small() {
    let mut broken = Vec::new();
    for path in COMMITTED.iter() {
        let bytes = fs::metadata(path).expect("it is there").len();
        if bytes > LARGEST_FILE_BYTES {
            broken.push(format!("{} has {bytes} bytes; at most {LARGEST_FILE_BYTES} are committed", shown(path)));
        }
        let is_source = path.extension().is_some_and(|e| ["rs", "ts", "svelte", "sol"].iter().any(|s| e == *s));
        let lines = if is_source { fs::read_to_string(path).expect("sources are UTF-8").lines().count() } else { 0 };
        if lines > LONGEST_SOURCE_LINES {
            broken.push(format!("{} has {lines} lines; at most {LONGEST_SOURCE_LINES} make one idea", shown(path)));
        }
    }
    assert_none(
        &broken,
        "Split a long source where its second idea begins; generate or fetch a large file instead of committing it.",
    );
}

#[test]
fn no_committed_text_names_a_place_on_one_machine() {
    let mut broken = Vec::new();
    for path in COMMITTED.iter() {
        let bytes = fs::read(path).expect("it is there");
        let Ok(text) = std::str::from_utf8(&bytes) else { continue };
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.contains('\0')) {
            if let Some(place) = sources::machine_path(line) {
                broken.push(format!("{}:{} names {place}", shown(path), number + 1));
            }
        }
    }
    assert_none(
        &broken,
        "Use a path relative to the repository, an environment variable, or a temporary folder made by the program.",
    );
}

/// The checks above only mean something if their readers see what they should.
mod readers {
    use super::{matches, sources, spdx};

    #[test]
    fn licence_expressions_follow_spdx() {
        let allowed = |l: &str| ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"].contains(&l);
        let good = [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0-only OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "MIT AND Apache-2.0 OR GPL-3.0-only",
        ];
        let bad = [
            "",
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "MIT WITH some-exception",
            "(MIT",
            "MIT MIT",
            "MIT OR",
            "(MIT OR Apache-2.0) AND Zlib",
            "no licence",
        ];
        good.iter().for_each(|e| assert!(spdx::is_allowed(e, &allowed), "{e} can be met"));
        bad.iter().for_each(|e| assert!(!spdx::is_allowed(e, &allowed), "{e} must be refused"));
    }

    #[test]
    fn imports_are_seen_through_braces_and_not_in_comments() {
        let source = "// std::fs in a comment\nuse std::{collections::{BTreeMap, BTreeSet}, fs, time::{Duration, Instant}};\nlet x = my_std::fs();\nstd::net::TcpStream::connect(a); use tokio::io;";
        let seen = sources::named_paths(source);
        for path in ["std::collections::BTreeMap", "std::fs", "std::time::Duration", "std::time::Instant", "tokio::io"]
        {
            assert!(seen.iter().any(|s| s == path), "{path} is imported, {seen:?}");
        }
        assert!(seen.iter().any(|s| s.starts_with("std::net")), "a path that is spelled out is seen, {seen:?}");
        assert_eq!(seen.iter().filter(|s| *s == "std::fs").count(), 1, "comments and longer names are not, {seen:?}");
    }

    #[test]
    fn machine_paths_are_told_from_urls_and_variables() {
        for (start, rest) in
            [("/ho", "me/ann/x"), ("see /ro", "ot/.cargo"), ("\"/tm", "p/out\""), ("C:\\Us", "ers\\Bo")]
        {
            assert!(sources::machine_path(&format!("{start}{rest}")).is_some(), "{start}{rest} is on one machine");
        }
        for fine in
            ["https://a.org/home/x", "$HOME/x", "${ROOT}/work/x", "/home/ is a folder", "target/tmp/x", "~/work/x"]
        {
            assert_eq!(sources::machine_path(fine), None, "{fine} is not");
        }
    }

    #[test]
    fn name_patterns_end_at_a_star() {
        assert!(matches("candle-*", "candle-core") && matches("rtc", "rtc"));
        assert!(!matches("candle-*", "candles") && !matches("rtc", "rtc-turn"));
    }
}
