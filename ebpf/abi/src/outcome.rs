//! What is to be done with a packet, packed into one word: the verifier can merge the ways that lead to one word, not
//! those that lead to different shapes of an enum, and a program's cost to verify is the number of ways.

use crate::{
    bytes::Be16,
    drop_reason::{DropReason, Event},
};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// Nothing has been found so far.
    Unknown = 0,
    /// The flow is known but must leave its backend.
    Rechoose = 1,
    /// No service is concerned, or another hook will do it.
    Pass = 2,
    /// To a backend.
    Forward = 3,
    /// From a backend to its client.
    Reply = 4,
    /// The client is told at once that nobody serves it.
    Refuse = 5,
    /// The packet goes no further.
    Drop = 6,
}

/// An action with what belongs to it.
///
/// ```text
///  63........48      47..40          39        38       37     36     35..32   31............0
///  source port  reason, event + 1  to node  takes port  ended  opened  action   backend, service
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Outcome(pub u64);

impl Outcome {
    const ACTION_SHIFT: u32 = 32;
    const OPENED: u64 = 1 << 36;
    const ENDED: u64 = 1 << 37;
    const TAKES_PORT: u64 = 1 << 38;
    const TO_NODE: u64 = 1 << 39;
    const REASON_SHIFT: u32 = 40;
    const PORT_SHIFT: u32 = 48;

    /// Nothing has been found so far.
    pub const UNKNOWN: Self = Self::of(Action::Unknown, 0);
    /// No service is concerned, or another hook will do it.
    pub const PASS: Self = Self::of(Action::Pass, 0);

    #[inline(always)]
    const fn of(action: Action, number: u32) -> Self {
        Self(number as u64 | (action as u64) << Self::ACTION_SHIFT)
    }

    /// The flow must leave this backend.
    #[inline(always)]
    pub const fn rechoose(backend: u32) -> Self {
        Self::of(Action::Rechoose, backend)
    }

    /// With the note that the flow takes a port of the node's address.
    #[inline(always)]
    #[must_use]
    pub const fn with_port(self) -> Self {
        Self(self.0 | Self::TAKES_PORT)
    }

    /// With the note that a reply's client is a process of the node itself, if it is.
    #[inline(always)]
    #[must_use]
    pub const fn to_node_if(self, is: bool) -> Self {
        Self(self.0 | (is as u64 * Self::TO_NODE))
    }

    /// To a backend; `port` is the source that source NAT gives, zero without.
    #[inline(always)]
    pub const fn forward(backend: u32, port: Be16) -> Self {
        Self(Self::of(Action::Forward, backend).0 | (port.0 as u64) << Self::PORT_SHIFT)
    }

    /// From a backend to its client.
    #[inline(always)]
    pub const fn reply(backend: u32) -> Self {
        Self::of(Action::Reply, backend)
    }

    /// The client of a service is refused.
    #[inline(always)]
    pub const fn refuse(reason: DropReason, service: u32) -> Self {
        Self(Self::of(Action::Refuse, service).0 | (reason.index() as u64) << Self::REASON_SHIFT)
    }

    /// The packet goes no further.
    #[inline(always)]
    pub const fn drop(reason: DropReason) -> Self {
        Self(Self::of(Action::Drop, 0).0 | (reason.index() as u64) << Self::REASON_SHIFT)
    }

    /// With the note that a flow began.
    #[inline(always)]
    #[must_use]
    pub const fn opened(self) -> Self {
        Self(self.0 | Self::OPENED)
    }

    /// With the note that a flow ended, if it did.
    #[inline(always)]
    #[must_use]
    pub const fn ended_if(self, ended: bool) -> Self {
        Self(self.0 | (ended as u64 * Self::ENDED))
    }

    /// With an event to count.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, event: Event) -> Self {
        Self(self.0 | (event.index() as u64 + 1) << Self::REASON_SHIFT)
    }

    /// Which action.
    #[inline(always)]
    pub const fn action(self) -> Action {
        match (self.0 >> Self::ACTION_SHIFT) & 0xf {
            1 => Action::Rechoose,
            2 => Action::Pass,
            3 => Action::Forward,
            4 => Action::Reply,
            5 => Action::Refuse,
            6 => Action::Drop,
            _ => Action::Unknown,
        }
    }

    /// Whether it is known what to do.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        (self.0 >> Self::ACTION_SHIFT) & 0xf >= Action::Pass as u64
    }

    /// The backend, or for a refusal the service.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// Whether a flow began.
    #[inline(always)]
    pub const fn is_opened(self) -> bool {
        self.0 & Self::OPENED != 0
    }

    /// Whether a reply's client is a process of the node itself.
    #[inline(always)]
    pub const fn is_to_node(self) -> bool {
        self.0 & Self::TO_NODE != 0
    }

    /// Whether the flow takes a port of the node's address.
    #[inline(always)]
    pub const fn takes_port(self) -> bool {
        self.0 & Self::TAKES_PORT != 0
    }

    /// Whether a flow ended.
    #[inline(always)]
    pub const fn is_ended(self) -> bool {
        self.0 & Self::ENDED != 0
    }

    /// The port that source NAT gives; zero without.
    #[inline(always)]
    pub const fn port(self) -> Be16 {
        Be16((self.0 >> Self::PORT_SHIFT) as u16)
    }

    /// The index of a refusal's or drop's reason.
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        ((self.0 >> Self::REASON_SHIFT) & 0xff) as u32
    }

    /// The index of a forwarding's event, plus one; zero without.
    #[inline(always)]
    pub const fn event(self) -> u32 {
        ((self.0 >> Self::REASON_SHIFT) & 0xff) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_gives_back_what_it_was_made_of() {
        let forward = Outcome::forward(0xf_ffff, Be16(0xffff))
            .opened()
            .with(Event::EvictedConfirmed);
        assert_eq!(forward.action(), Action::Forward);
        assert_eq!(
            (forward.number(), forward.port(), forward.is_opened()),
            (0xf_ffff, Be16(0xffff), true)
        );
        assert_eq!(forward.event(), Event::EvictedConfirmed.index() + 1);
        let refuse = Outcome::refuse(DropReason::BackendGone, 7);
        assert_eq!((refuse.action(), refuse.number()), (Action::Refuse, 7));
        assert_eq!(refuse.reason(), DropReason::BackendGone.index());
        assert!(!Outcome::UNKNOWN.is_settled() && !Outcome::rechoose(3).is_settled());
        assert!(Outcome::PASS.is_settled() && Outcome::drop(DropReason::NoBackend).is_settled());
    }
}
