//! `computepool node`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use pool_node::{
    NodeConfig, NodeModel, ResourceLimits, VotePolicy,
    identity::{Passphrase, make_private_directory, open_or_create},
    measure_capabilities,
};
use pool_sense::HostSense;
use pool_types::FlowRate;

use crate::{
    arguments::{CpuSet, NodeArguments},
    logs, manifest, owner, serving,
    state::read_roster,
    stop,
};

pub(crate) fn run(arguments: NodeArguments) -> Result<ExitCode> {
    make_private_directory(&arguments.state)?;
    let passphrase = Passphrase::from_file_or_environment(arguments.passphrase_file.as_deref())?;
    let wallet = open_or_create(&arguments.state, &passphrase)?;
    if arguments.show_address {
        println!("{}", wallet.address());
        return Ok(ExitCode::SUCCESS);
    }
    logs::start(Some(&owner::log_file(&arguments.state)), arguments.verbose)
        .with_context(|| format!("cannot write a log in {}", arguments.state.display()))?;
    let capabilities = match &arguments.capabilities {
        Some(json) => serde_json::from_str(json).context("--capabilities is not usable")?,
        None => {
            let limits =
                ResourceLimits { threads: arguments.threads, memory_share: arguments.memory_share, memory_bytes: None };
            measure_capabilities(&HostSense, limits)?
        }
    };
    let policy = arguments.policy.then(|| owner::wishes(&arguments)).transpose()?;
    let state = arguments.state.clone();
    let roster = read_roster(&arguments.roster)?;
    let fetched = arguments.manifest.as_deref().map(|file| manifest::read(file, &arguments)).transpose()?;
    let (local, vote) = (arguments.model, arguments.registry);
    // Only an owner's node keeps books; others may find the variable that names a chain in their environment.
    let chain = if arguments.policy { owner::chain(&arguments.chain)? } else { None };
    let config = |model| NodeConfig {
        orchestrator: arguments.orchestrator,
        roster,
        name: String::new(),
        wallet,
        model,
        shard_program: None,
        capabilities,
        cpus: arguments.cpus.iter().flat_map(CpuSet::cores).collect(),
        gpus: None,
        quantise: arguments.quantise,
        loopback_only: arguments.loopback_only,
        vote: vote.map(|domain| VotePolicy { domain, least: FlowRate::from_units_per_second(arguments.least_income) }),
    };
    serving::runtime(1)?.block_on(async {
        let shutdown = stop::on_signal()?;
        if arguments.with_parent {
            stop::with_parent(shutdown.clone());
        }
        let model = match (fetched, local) {
            // An owner's downloads wait for the first decision.
            (Some(fetched), _) => NodeModel::Fetched(Box::new(fetched.start(policy.is_some())?)),
            (None, Some(path)) => NodeModel::Local(path),
            (None, None) => bail!("say which model to serve: --model or --manifest"),
        };
        let config = config(model);
        match policy {
            Some(wishes) => owner::run(config, &state, wishes, chain, shutdown).await?,
            None => pool_node::run(config, shutdown).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}
