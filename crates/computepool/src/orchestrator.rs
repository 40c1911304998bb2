//! `computepool orchestrator`.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use pool_node::identity::{Passphrase, open_or_create};
use pool_orchestrator::{
    Orchestrator, OrchestratorConfig,
    control::{ControlTap, Stage, Timing},
};

use crate::{
    arguments::OrchestratorArguments,
    cluster::warn_when_open,
    logs,
    paying::PaidOn,
    serving,
    state::{StateFolder, read_roster},
    stop,
};

pub(crate) fn run(arguments: OrchestratorArguments) -> Result<ExitCode> {
    let mut folder = StateFolder::lock(&arguments.state)?;
    let passphrase = Passphrase::from_file_or_environment(arguments.passphrase_file.as_deref())?;
    let wallet = open_or_create(&folder.path().join("gateway"), &passphrase)?;
    if arguments.show_address {
        println!("{}", wallet.address());
        return Ok(ExitCode::SUCCESS);
    }
    logs::start(Some(&folder.log()), arguments.verbose)
        .with_context(|| format!("cannot write a log in {}", arguments.state.display()))?;
    // The key that may stop streams which run short, and nothing else.
    let sentinel =
        arguments.pay.pay.then(|| open_or_create(&folder.path().join("sentinel"), &passphrase)).transpose()?;
    let gateway = wallet.address();
    let model = serving::open_model(&arguments.model)?;
    let mut config = OrchestratorConfig {
        api: arguments.api.clone(),
        database: folder.database(),
        wallet,
        roster: read_roster(&arguments.roster)?,
        model_name: serving::model_name(arguments.model_name.as_deref(), &model),
        model,
        wishes: arguments.serving.wishes(arguments.shards),
        api_key: arguments.api_key.clone(),
        loopback_only: arguments.loopback_only,
        max_waiting: 256,
        queue_deadline: Duration::from_secs(60),
        timing: Timing::default(),
        control_tap: ControlTap::default(),
        data_tap: None,
        money: None,
    };
    serving::runtime(2)?.block_on(async {
        let shutdown = stop::on_signal()?;
        // A local chain that was started here ends with this.
        let mut _devnet = None;
        if let (Some(options), Some(sentinel)) = (arguments.pay.options(true), sentinel) {
            let paid = PaidOn::prepare(&folder, &options, gateway, sentinel).await?;
            let registry = paid.registry();
            eprintln!("sessions are paid on {}; nodes serve with --registry {registry}", options.network);
            (config.money, _devnet) = (Some(paid.config), paid.devnet);
        }
        let orchestrator = Orchestrator::bind(config).await?;
        let address = orchestrator.address();
        folder.write_holder(Some(address.to_string()))?;
        warn_when_open(address, arguments.api_key.as_deref());
        eprintln!("waiting for nodes at ws://{address}");
        let mut view = orchestrator.view();
        let announce = tokio::spawn(async move {
            if view.wait_for(|view| view.state == Stage::Active).await.is_ok() {
                println!("ready http://{address}/v1");
            }
        });
        let outcome = orchestrator.serve(shutdown).await;
        announce.abort();
        outcome?;
        Ok(ExitCode::SUCCESS)
    })
}
