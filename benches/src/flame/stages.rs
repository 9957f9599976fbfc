//! Stages of a frame's way, and what belongs to each.

use super::chains::{Chain, Frame};

/// In the order in which a frame sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Descriptors,
    Translation,
    Heads,
    Bridge,
    Gather,
    Copy,
    GiveBack,
    Publish,
    Loop,
    Outside,
}

impl Stage {
    pub const ALL: [Stage; 10] = [
        Stage::Descriptors,
        Stage::Translation,
        Stage::Heads,
        Stage::Bridge,
        Stage::Gather,
        Stage::Copy,
        Stage::GiveBack,
        Stage::Publish,
        Stage::Loop,
        Stage::Outside,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Stage::Descriptors => "pull: descriptors",
            Stage::Translation => "pull: translation",
            Stage::Heads => "pull: heads",
            Stage::Bridge => "bridge",
            Stage::Gather => "deliver: gather",
            Stage::Copy => "deliver: copy",
            Stage::GiveBack => "give back",
            Stage::Publish => "publish",
            Stage::Loop => "loop",
            Stage::Outside => "kernel and libraries",
        }
    }

    /// The stage that a chain belongs to.
    pub fn of(chain: &Chain) -> Stage {
        let has = |test: &dyn Fn(&Frame) -> bool| chain.iter().any(test);
        let does = |names: &[&str]| has(&|frame| names.contains(&frame.function()));
        let is_in = |part: &str| has(&|frame| frame.module.starts_with(part));
        let Some(first) = chain.first() else { return Stage::Loop };
        if first.module.is_empty() {
            Stage::Outside
        } else if does(&["publish", "notify"]) {
            Stage::Publish
        } else if does(&["reclaim", "settle", "give_back", "give_all_back"]) {
            Stage::GiveBack
        } else if is_in("apps::") {
            Stage::Bridge
        } else if does(&["pull", "pull_held", "pull_any"]) {
            // The head is fetched ahead by its slice and taken by `Burst::push`, and a frame is made of it.
            let makes_frames = does(&["make_frames", "frame"]);
            if makes_frames || is_in("engine::burst") || is_in("memory::slice") {
                Stage::Heads
            } else if is_in("memory::table") {
                Stage::Translation
            } else {
                Stage::Descriptors
            }
        } else if is_in("memory::copy") || is_in("memory::sum") {
            Stage::Copy
        } else if is_in("ports::") || is_in("virtqueue::") || is_in("memory::") {
            Stage::Gather
        } else {
            Stage::Loop
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_have_their_stage() {
        let pull = ("VhostUserPort::pull", "ports::vhost_user");
        let push = ("VhostUserPort::deliver", "ports::vhost_user");
        let chains: [(&[(&str, &str)], Stage); 13] = [
            (&[pull, ("device::take_singles", "virtqueue::split::device")], Stage::Descriptors),
            (&[pull, ("table::read_again", "memory::table")], Stage::Translation),
            (
                &[pull, ("burst::push", "engine::burst"), ("memory::copy", "memory::copy")],
                Stage::Heads,
            ),
            (&[pull, ("slice::prefetch", "memory::slice")], Stage::Heads),
            (&[("Bridge::push", "apps::bridge")], Stage::Bridge),
            (&[push, ("device::take_singles", "virtqueue::split::device")], Stage::Gather),
            (&[push, ("memory::copy", "memory::copy")], Stage::Copy),
            (&[push, ("device::give_all_back", "virtqueue::split::device")], Stage::GiveBack),
            (&[("VhostUserPort::publish", "ports::vhost_user")], Stage::Publish),
            (&[("VhostUserPort::notify", "ports::vhost_user")], Stage::Publish),
            (&[("graph::note", "engine::graph")], Stage::Loop),
            (&[], Stage::Loop),
            (&[("kernel", ""), ("schedule", "")], Stage::Outside),
        ];
        for (chain, stage) in chains {
            let chain = chain.iter().map(|(name, module)| Frame::new(name, module)).collect();
            assert_eq!(Stage::of(&chain), stage, "{chain:?}");
        }
    }
}
