//! Prints what every sensor says, once, in plain words: `cargo run -p pool-sense --example look [program ...]`.

use std::{error::Error, fmt::Display, time::Duration};

use pool_sense::{Gpu, Presence, Senses, Surroundings};
use pool_types::Reading;

fn main() -> Result<(), Box<dyn Error>> {
    let programs: Vec<String> = std::env::args().skip(1).collect();
    let senses = Senses::start(&Surroundings::of_this_process())?;
    let asked_for_programs = !programs.is_empty();
    senses.set_programs(programs);
    if !senses.wait_for_first_readings(Duration::from_secs(10)) {
        println!("Some sensors have not answered within ten seconds.");
    }
    let now = senses.snapshot();

    let words = |reading: Reading<bool>| reading.map(|yes| if yes { "yes" } else { "no" });
    line("Last input", &now.input.reading);
    line("A window covers a whole monitor", &words(now.full_screen.reading));
    line("A program keeps the screen awake", &words(now.kept_awake.reading));
    if asked_for_programs {
        let names = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        line("Of your programs, these run", &now.programs.reading.map(names));
    }
    line("Power comes from", &now.power.reading);
    line("Energy of the processor since we looked first", &now.cpu_energy.reading);
    line("Metered network", &now.metered.reading);
    line("NVIDIA GPUs", &now.gpus.reading);
    now.gpus.reading.known().iter().flat_map(|gpus| &gpus.cards).for_each(card);
    Ok(())
}

fn line(name: &str, value: &dyn Display) {
    println!("{name}: {value}.");
}

fn card(gpu: &Gpu) {
    let bytes = |bytes: &Reading<u64>| bytes.clone().map(|bytes| format!("{} MiB", bytes >> 20));
    line(&format!("GPU {}", gpu.index), &gpu.name);
    line("  Name for life", &gpu.uuid);
    line("  Memory", &bytes(&gpu.memory_total));
    line("  Memory in use by us", &bytes(&gpu.memory_ours));
    line("  Memory in use by others", &bytes(&gpu.memory_others));
    line("  Load", &gpu.load);
    line("  Temperature", &gpu.temperature.clone().map(|degrees| format!("{degrees} C")));
    let watts = |milliwatts: u32| format!("{:.1} W", f64::from(milliwatts) / 1000.0);
    line("  Power", &gpu.power_milliwatts.clone().map(watts));
    line("  Energy since we looked first", &gpu.energy);
}
