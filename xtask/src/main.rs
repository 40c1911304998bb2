//! Repository chores that need code. At present: training the bundled model in `models/tiny`.
//!
//! ```text
//! cargo xtask train-tiny            train, export and check
//! cargo xtask check-tiny            ask the exported model everything it was taught
//! cargo xtask corpus-tiny           print a few training conversations
//! ```

mod check;
mod corpus;
mod export;
mod model;
mod safetensors;
mod tokenizer;
mod train;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Repository chores that need code")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Train the bundled model, write it, and check what was written
    #[command(name = "train-tiny")]
    Train(TrainArgs),
    /// Ask the written model everything it was taught, and fail when it forgot too much
    #[command(name = "check-tiny")]
    Check {
        /// Folder of the model
        #[arg(long, default_value = "models/tiny")]
        model: PathBuf,
    },
    /// Print a few conversations as they are shown to the model in training
    #[command(name = "corpus-tiny")]
    Corpus {
        /// Seed of the choice
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

#[derive(Args)]
struct TrainArgs {
    /// Folder to write the model to
    #[arg(long, default_value = "models/tiny")]
    out: PathBuf,
    /// Steps of training; the same steps and seed give the same model on the same kind of processor
    #[arg(long, default_value_t = train::DEFAULT_STEPS)]
    steps: usize,
    /// Train for so many minutes instead of a number of steps
    #[arg(long, conflicts_with = "steps")]
    minutes: Option<f64>,
    /// Seed of the first weights and of the order of the text
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    match Cli::parse().chore {
        Chore::Train(args) => {
            if train::restart_with_one_thread_each()? {
                return Ok(());
            }
            let length = match args.minutes {
                Some(minutes) => train::Length::Minutes(minutes),
                None => train::Length::Steps(args.steps),
            };
            let corpus = corpus::Corpus::bundled()?;
            let tokenizer = tokenizer::Tokenizer::train(&corpus)?;
            let config = model::Config::tiny(tokenizer.size());
            let trained = train::train(&corpus, &tokenizer, &config, length, args.seed)?;
            export::write_model(&args.out, &config, &tokenizer, &trained)?;
            let answers = check::check(&args.out, &corpus)?;
            export::write_readme(&args.out, &config, &corpus, &trained, &answers)?;
            answers.enough()
        }
        Chore::Check { model } => check::check(&model, &corpus::Corpus::bundled()?)?.enough(),
        Chore::Corpus { seed } => {
            let corpus = corpus::Corpus::bundled()?;
            let mut rng = corpus::rng(seed);
            for _ in 0..40 {
                println!("{}\n", corpus.conversation(&mut rng));
            }
            Ok(())
        }
    }
}
