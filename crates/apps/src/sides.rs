//! The two sides of an app that lies between a port and the rest of the network.
//!
//! Input `n` and output `n` are side `n`. So frames *from* the port come in by input [`PORT`] and leave by
//! output [`NETWORK`], and frames *to* the port come in by input [`NETWORK`] and leave by output [`PORT`].

/// The side that the port is on.
pub const PORT: usize = 0;

/// The side that everything else is on.
pub const NETWORK: usize = 1;

/// The side opposite to `side`: where frames leave that came in by it.
#[inline]
pub const fn opposite(side: usize) -> usize {
    if side == PORT { NETWORK } else { PORT }
}

/// The output by which an app with two sides passes on what it hears of an input: see [`engine::App::link`].
pub(crate) fn passed_on(input: usize) -> Option<usize> {
    (input <= NETWORK).then(|| opposite(input))
}

#[cfg(test)]
mod tests {
    use engine::App;

    use super::*;
    use crate::anti_spoof::{self, AntiSpoof};
    use crate::filter::{self, Filter};
    use crate::impair::{self, Impair};
    use crate::mirror::{self, MIRROR, Mirror};
    use crate::police::{self, Police};
    use crate::storm::{self, Storm};
    use crate::testing::Net;

    /// Whoever is on one side of an app is to those on the other side what it is to the app.
    fn passes_on(app: impl App) {
        let mut net = Net::new(app, 3);
        net.breathe();
        for side in [PORT, NETWORK] {
            for is_up in [false, true] {
                for side in [PORT, NETWORK, MIRROR] {
                    net.station(side).links.clear();
                }
                net.set_link(side, is_up);
                assert_eq!(net.station(opposite(side)).links, [is_up]);
                assert!(net.station(side).links.is_empty());
                assert!(net.station(MIRROR).links.is_empty());
            }
        }
        net.station(PORT).links.clear();
        net.set_link(MIRROR, false);
        assert!(net.station(PORT).links.is_empty(), "there is no side opposite to it");
    }

    #[test]
    fn apps_with_two_sides_pass_on_what_is_up() {
        passes_on(AntiSpoof::new(&anti_spoof::Settings::default()));
        passes_on(Storm::new(&storm::Settings::default()).unwrap());
        passes_on(Police::new(&police::Settings::default()).unwrap());
        passes_on(Filter::new(filter::Settings::default(), [1, 2]));
        passes_on(Mirror::new(mirror::Settings::default()));
        passes_on(Impair::new(impair::Settings::default()).unwrap());
    }

    #[test]
    fn settings_of_another_app_are_refused() {
        let mut net = Net::new(Storm::new(&storm::Settings::default()).unwrap(), 2);
        let refused = net.reconfigure(&police::Settings::default());
        let expected = "these are settings of another kind of app: this one takes ringway_apps::storm::Settings";
        assert_eq!(refused, Err(expected.to_owned()));
        assert_eq!(net.reconfigure(&storm::Settings::default()), Ok(()));
    }
}
