//! How a flow moves from stage to stage with the packets that are seen of it.

use crate::{flow::Stage, protocol};

/// FIN, in the flags byte.
pub const FIN: u8 = 0x01;
/// SYN, in the flags byte.
pub const SYN: u8 = 0x02;
/// RST, in the flags byte.
pub const RST: u8 = 0x04;
/// ACK, in the flags byte.
pub const ACK: u8 = 0x10;

/// Which end sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The client, to the frontend.
    Client,
    /// The backend, to the client.
    Backend,
}

/// The stage that a flow begins in.
#[inline(always)]
pub const fn first(protocol: u8) -> Stage {
    match protocol {
        protocol::TCP => Stage::TCP_SYN,
        protocol::UDP => Stage::UDP_NEW,
        protocol::SCTP => Stage::SCTP_INIT,
        _ => Stage::ECHO_NEW,
    }
}

/// Whether a packet of a client opens a connection.
#[inline(always)]
pub const fn opens(protocol: u8, flags: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::SCTP) && flags & (SYN | ACK | RST | FIN) == SYN
}

/// Whether a packet of a backend accepts a connection.
#[inline(always)]
pub const fn accepts(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN | ACK
}

/// The stage after a packet.
#[inline(always)]
pub const fn next(stage: Stage, sender: Sender, flags: u8) -> Stage {
    // SYN, RST and FIN decide: a word for each of their combinations and each sender has four bits for each stage.
    let event = (flags & (FIN | SYN | RST)) as usize;
    let word = match sender {
        Sender::Client => FROM_CLIENT[event],
        Sender::Backend => FROM_BACKEND[event],
    };
    Stage((word >> (stage.0 as u64 * 4) & 0xf) as u8)
}

const FROM_CLIENT: [u64; 8] = words(Sender::Client);
const FROM_BACKEND: [u64; 8] = words(Sender::Backend);

const fn words(sender: Sender) -> [u64; 8] {
    let mut words = [0; 8];
    let mut flags = 0;
    while flags < 8 {
        let mut stage = 0;
        while stage < Stage::COUNT {
            words[flags as usize] |= (rule(Stage(stage), sender, flags).0 as u64) << (stage * 4);
            stage += 1;
        }
        flags += 1;
    }
    words
}

/// The rules of [`next`].
const fn rule(stage: Stage, sender: Sender, flags: u8) -> Stage {
    match stage {
        Stage::UDP_NEW if matches!(sender, Sender::Backend) => return Stage::UDP_REPLIED,
        Stage::ECHO_NEW if matches!(sender, Sender::Backend) => return Stage::ECHO_REPLIED,
        Stage::UDP_NEW
        | Stage::UDP_REPLIED
        | Stage::ECHO_NEW
        | Stage::ECHO_REPLIED
        | Stage::TCP_RESET => return stage,
        Stage::SCTP_INIT | Stage::SCTP_ESTABLISHED | Stage::SCTP_SHUTDOWN | Stage::SCTP_OVER => {
            return association(stage, sender, flags);
        }
        _ => {}
    }
    if flags & RST != 0 {
        return Stage::TCP_RESET;
    }
    let fin = flags & FIN != 0;
    match (sender, stage) {
        (Sender::Client, Stage::TCP_BACKEND_FIN) | (Sender::Backend, Stage::TCP_CLIENT_FIN)
            if fin =>
        {
            Stage::TCP_CLOSED
        }
        (Sender::Client, Stage::TCP_SYN | Stage::TCP_REPLIED | Stage::TCP_ESTABLISHED) if fin => {
            Stage::TCP_CLIENT_FIN
        }
        (Sender::Backend, Stage::TCP_SYN | Stage::TCP_REPLIED | Stage::TCP_ESTABLISHED) if fin => {
            Stage::TCP_BACKEND_FIN
        }
        (Sender::Client, Stage::TCP_REPLIED) if flags & SYN == 0 => Stage::TCP_ESTABLISHED,
        (Sender::Backend, Stage::TCP_SYN) => Stage::TCP_REPLIED,
        _ => stage,
    }
}

/// The rules for SCTP, whose chunks [`crate::sctp::flags`] puts into TCP's terms.
const fn association(stage: Stage, sender: Sender, flags: u8) -> Stage {
    if flags & RST != 0 || matches!(stage, Stage::SCTP_OVER) {
        Stage::SCTP_OVER
    } else if flags & FIN != 0 {
        Stage::SCTP_SHUTDOWN
    } else if matches!(sender, Sender::Backend) && matches!(stage, Stage::SCTP_INIT) {
        Stage::SCTP_ESTABLISHED
    } else {
        stage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(packets: &[(Sender, u8)]) -> Stage {
        packets
            .iter()
            .fold(first(protocol::TCP), |stage, (sender, flags)| {
                next(stage, *sender, *flags)
            })
    }

    #[test]
    fn a_whole_connection() {
        use Sender::{Backend, Client};
        let mut packets = std::vec![(Client, SYN)];
        assert_eq!(after(&packets), Stage::TCP_SYN);
        packets.push((Backend, SYN | ACK));
        assert_eq!(after(&packets), Stage::TCP_REPLIED);
        packets.push((Client, SYN));
        assert_eq!(
            after(&packets),
            Stage::TCP_REPLIED,
            "a SYN sent again confirms nothing"
        );
        packets.push((Client, ACK));
        assert_eq!(after(&packets), Stage::TCP_ESTABLISHED);
        packets.push((Client, FIN | ACK));
        assert_eq!(after(&packets), Stage::TCP_CLIENT_FIN);
        packets.push((Backend, ACK));
        assert_eq!(
            after(&packets),
            Stage::TCP_CLIENT_FIN,
            "the backend may go on sending"
        );
        packets.push((Backend, FIN | ACK));
        assert_eq!(after(&packets), Stage::TCP_CLOSED);
        packets.push((Client, ACK));
        assert_eq!(after(&packets), Stage::TCP_CLOSED);
    }

    #[test]
    fn a_refused_connection_is_over() {
        assert_eq!(
            after(&[(Sender::Client, SYN), (Sender::Backend, RST | ACK)]),
            Stage::TCP_RESET
        );
    }

    #[test]
    fn udp_is_confirmed_by_the_first_reply() {
        assert_eq!(next(Stage::UDP_NEW, Sender::Client, 0xff), Stage::UDP_NEW);
        assert_eq!(next(Stage::UDP_NEW, Sender::Backend, 0), Stage::UDP_REPLIED);
    }

    #[test]
    fn a_whole_association() {
        use Sender::{Backend, Client};
        let mut stage = first(protocol::SCTP);
        let packets = [
            (Client, SYN, Stage::SCTP_INIT),
            (Backend, SYN | ACK, Stage::SCTP_ESTABLISHED),
            (Client, ACK, Stage::SCTP_ESTABLISHED),
            (Client, FIN | ACK, Stage::SCTP_SHUTDOWN),
            (Backend, FIN | ACK, Stage::SCTP_SHUTDOWN),
            (Client, RST | ACK, Stage::SCTP_OVER),
            (Backend, ACK, Stage::SCTP_OVER),
        ];
        for (sender, flags, expected) in packets {
            stage = next(stage, sender, flags);
            assert_eq!(stage, expected);
        }
    }

    proptest! {
        #[test]
        fn no_packet_empties_a_slot_or_changes_its_protocol(stage in 1..Stage::COUNT, flags: u8, backend: bool) {
            let sender = if backend { Sender::Backend } else { Sender::Client };
            let moved = next(Stage(stage), sender, flags);
            prop_assert_eq!(moved.protocol(), Stage(stage).protocol());
        }

        #[test]
        fn what_is_over_stays_over(flags in proptest::collection::vec((any::<bool>(), any::<u8>()), 1..50)) {
            let mut over = false;
            let mut stage = Stage::TCP_SYN;
            for (backend, flags) in flags {
                let sender = if backend { Sender::Backend } else { Sender::Client };
                stage = next(stage, sender, flags);
                prop_assert!(!over || stage.is_over());
                over = stage.is_over();
            }
        }
    }
}
