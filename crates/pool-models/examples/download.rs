//! Fetches some layers of a model from a plain host, such as Hugging Face, into a cache, and opens them there:
//!
//! ```sh
//! cargo run -p pool-models --example download -- https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct/resolve/main 0-3 cache
//! ```

use std::{error::Error, sync::Arc};

use pool_models::{
    AccessToken, Cache, Download, DownloadOptions, DownloadState, Downloads, Mirror, Model, RemoteModel, SystemSpace,
    Wanted,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(layers), Some(folder)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("say an address, the first and last layer, and a folder: https://… 0-3 cache".into());
    };
    let mut mirror = Mirror::new(&address)?;
    if let Ok(token) = std::env::var("HF_TOKEN") {
        mirror = mirror.with_token(AccessToken::new(token)?);
    }
    let cache = Cache::open(folder)?;
    let downloads = Downloads::start(cache, DownloadOptions::default(), Arc::new(SystemSpace))?;
    let model = RemoteModel::Folder { name: mirror.host() };
    let manifest = Arc::new(downloads.survey(&mirror, &model).await?);
    let wanted = Wanted::shard(layers.parse()?, &manifest.config);
    let download = Download { manifest, signature: None, owner: None, wanted, mirrors: vec![mirror], priority: 0 };
    let id = downloads.add(download).await?;

    let mut list = downloads.watch();
    let ended = loop {
        let now = list.borrow_and_update().downloads.iter().find(|status| status.id == id).cloned();
        if let Some(status) = now {
            println!("{status}");
            if status.has_ended() {
                break status;
            }
        }
        list.changed().await?;
    };
    downloads.stop().await;
    if ended.state == DownloadState::Done {
        let model = Model::open(&ended.path)?;
        println!(
            "{} of {} layers are in {}",
            wanted.layers.map_or(0, |l| l.len()),
            model.config.layers,
            ended.path.display()
        );
    }
    Ok(())
}
