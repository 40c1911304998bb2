//! Why there is no coalition, in words.

use pool_coalition::RosterRole;

use super::{Registry, Stage};

impl Registry {
    /// Why there is no active coalition, as one sentence.
    pub(crate) fn reason(&self) -> Option<String> {
        let expected = self.roster.members.iter().filter(|member| member.role == RosterRole::Node).count();
        let here = self.nodes.len();
        match &self.coalition {
            Some(coalition) => match coalition.stage {
                Stage::Active => None,
                Stage::Loading => Some(format!(
                    "{} of {} members have loaded their layers",
                    coalition.loaded.len(),
                    coalition.assignment.members.len()
                )),
                _ => Some(format!(
                    "{} of {} members have linked up",
                    coalition.joined.len(),
                    coalition.assignment.members.len()
                )),
            },
            None => match &self.obstacle {
                Some(obstacle) => Some(format!("{} ({here} of {expected} nodes are connected)", obstacle.message)),
                None => Some(format!("{here} of {expected} nodes are connected")),
            },
        }
    }
}
