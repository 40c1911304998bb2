//! The `computepool` command. Each subcommand is a module; `arguments` is what a person can write.

mod api_client;
mod arguments;
mod bench;
mod chat;
mod cluster;
mod demo;
mod detach;
mod devnet;
mod inspect;
mod logs;
mod manifest;
mod network;
mod node;
mod orchestrator;
mod owner;
mod paying;
mod plan;
mod processes;
mod serving;
mod session;
mod shapes;
mod state;
mod stop;
mod table;
mod up;
mod verify;
mod wallet;
mod when;

use std::{panic, process::ExitCode};

use arguments::{Arguments, Command};
use clap::CommandFactory;

/// Something could not be done as asked; one sentence says what and what to do about it.
const CANNOT: u8 = 2;

/// Whoever reads what is printed may have read enough (`computepool log | head`): that ends the program, and is no crash.
fn end_with_the_reader() {
    let crash = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        let told = what.payload().downcast_ref::<String>().map_or("", String::as_str);
        if told.starts_with("failed printing to stdout") && told.contains("Broken pipe") {
            // As a program that the signal ends.
            std::process::exit(128 + nix::sys::signal::Signal::SIGPIPE as i32);
        }
        crash(what);
    }));
}

fn main() -> ExitCode {
    end_with_the_reader();
    // Chains and orchestrators may be behind TLS, and the dependencies bring two kinds of cryptography: rustls takes
    // neither unless one is named. It can only be named twice by mistake, and the first stands.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::of_command_line();
    let outcome = match arguments.command {
        Command::Up(arguments) if arguments.detach => detach::up(&arguments),
        Command::Up(arguments) => up::run(arguments),
        Command::Down(arguments) => detach::down(&arguments),
        Command::Node(arguments) => node::run(*arguments),
        Command::Status(arguments) => owner::status(&arguments),
        Command::Pause(arguments) => owner::pause(&arguments),
        Command::Resume(arguments) => owner::resume(&arguments),
        Command::Downloads(arguments) => owner::downloads(&arguments),
        Command::Log(arguments) => owner::log(&arguments),
        Command::Earnings(arguments) => owner::earnings(&arguments),
        Command::Diagnostics(arguments) => owner::diagnostics(&arguments),
        Command::Orchestrator(arguments) => orchestrator::run(*arguments),
        Command::Chat(arguments) => chat::run(*arguments),
        Command::Session(command) => session::run(command),
        Command::Wallet(arguments) => wallet::run(&arguments),
        Command::Devnet(command) => devnet::run(command),
        Command::Verify(command) => verify::run(&command),
        Command::Manifest(arguments) => manifest::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Completions(arguments) => {
            clap_complete::generate(arguments.shell, &mut Arguments::command(), "computepool", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("computepool: {error:#}");
        ExitCode::from(CANNOT)
    })
}
