//! The settings that are in force, kept from one run to the next.

use pool_policy::Settings;
use pool_store::{Store, StoreError};
use tracing::{error, warn};

/// Where the settings in force are kept.
const SETTINGS: &str = "owner.settings";
/// Settings that could not be read are kept under this name and a number.
const ASIDE: &str = "owner.settings.unreadable";
/// Of those the first so many are kept; nobody needs more.
const MOST_ASIDE: u32 = 10;

/// The settings that were kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeptSettings {
    /// What was in force last; nothing in a new store, or where it cannot be read.
    pub settings: Option<Settings>,
    /// Why they cannot be read, where that is so. They are kept aside, and the defaults hold.
    pub unreadable: Option<String>,
}

/// Reads the settings that were in force last. Those that this version cannot use (a later one wrote them, or somebody
/// edited them) are kept aside, so that the defaults never overwrite what the owner chose.
pub async fn kept_settings(store: &Store) -> Result<KeptSettings, StoreError> {
    let Some(text) = store.setting(SETTINGS).await? else { return Ok(KeptSettings::default()) };
    match serde_json::from_str(&text) {
        Ok(settings) => Ok(KeptSettings { settings: Some(settings), unreadable: None }),
        Err(error) => {
            let mut free = None;
            for number in 1..=MOST_ASIDE {
                let name = format!("{ASIDE}-{number}");
                match store.setting(&name).await? {
                    Some(kept) if kept == text => break,
                    Some(_) => {}
                    None => {
                        free = Some(name);
                        break;
                    }
                }
            }
            if let Some(name) = free {
                warn!(%error, name, "the settings that were kept cannot be used; they are kept aside");
                store.set_setting(&name, &text).await?;
            }
            Ok(KeptSettings { settings: None, unreadable: Some(error.to_string()) })
        }
    }
}

/// Keeps the settings that are in force now.
pub(super) async fn keep(store: &Store, settings: &Settings) -> Result<(), StoreError> {
    match serde_json::to_string(settings) {
        Ok(text) => store.set_setting(SETTINGS, &text).await,
        Err(error) => {
            error!(%error, "the settings cannot be written");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use pool_policy::Seconds;

    use super::*;

    #[tokio::test]
    async fn settings_are_found_again_and_those_of_a_later_version_are_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("node.db")).await.unwrap();
        assert_eq!(kept_settings(&store).await.unwrap(), KeptSettings::default());
        let mine = Settings { start_after: Seconds(77), ..Settings::default() };
        keep(&store, &mine).await.unwrap();
        assert_eq!(kept_settings(&store).await.unwrap().settings, Some(mine));
        for later in [r#"{"start_after": 77, "of_tomorrow": true}"#, r#"{"start_after": 78, "of_tomorrow": true}"#] {
            // Twice, as of a program that is started twice.
            for _ in 0..2 {
                store.set_setting(SETTINGS, later).await.unwrap();
                let kept = kept_settings(&store).await.unwrap();
                assert_eq!(kept.settings, None);
                assert!(kept.unreadable.unwrap().contains("of_tomorrow"), "the reason names what is not understood");
                keep(&store, &Settings::default()).await.unwrap();
            }
        }
        let aside = async |number| store.setting(&format!("{ASIDE}-{number}")).await.unwrap();
        assert!(aside(1).await.unwrap().contains("77") && aside(2).await.unwrap().contains("78"));
        assert_eq!(aside(3).await, None, "each is kept once");
    }
}
