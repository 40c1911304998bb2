//! Everything that reads bytes of strangers, as functions of those bytes. Each asserts more than that nothing
//! panics: what was read is what was written, and stays within its bounds.
//!
//! `make fuzz` runs them under libFuzzer. `make test` runs every seed and every earlier finding through them
//! (`tests/seeds.rs`), so that a mended defect stays mended on machines that never fuzz.

mod chain;
mod models;
mod network;

/// One thing to fuzz.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and its seeds' folder.
    pub name: &'static str,
    /// What is done with the bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 13] = [
    Target { name: "frames", run: network::frames },
    Target { name: "control", run: network::control },
    Target { name: "signalling", run: network::signalling },
    Target { name: "roster", run: network::roster },
    Target { name: "gguf", run: models::gguf },
    Target { name: "safetensors", run: models::safetensors },
    Target { name: "configuration", run: models::configuration },
    Target { name: "tokenizer", run: models::tokenizer },
    Target { name: "manifest", run: models::manifest },
    Target { name: "template", run: models::template },
    Target { name: "voucher", run: chain::voucher },
    Target { name: "audit", run: chain::audit },
    Target { name: "workflow", run: chain::workflow },
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
