//! The stages of a decision as global functions: the verifier looks at each by itself, knowing nothing of its callers,
//! so that the cost of a program to verify is a sum and not a product.

use portolan_abi::{
    address::{V4, V6},
    client, crc32c, masquerade, open,
    outcome::Outcome,
    parse::Packet,
    quoted, reply,
    rewrite::Rewrite,
    tables::{Hook, Stages},
};

use crate::{
    handed::{Hand, Handed, Lent, hand, lend, take, take_mut},
    maps::{self, Family, Maps},
};

/// A stage that looks for the flow of a packet that an ICMP error quotes.
macro_rules! quoted {
    ($name:ident, $family:ty, $stage:path $(, $hash:ident)?) => {
        #[unsafe(no_mangle)]
        extern "C" fn $name(
            about: Handed<Packet<$family>>,
            $($hash: u64,)?
            rewrite: Lent<Rewrite<$family>>,
        ) -> u64 {
            let Some(rewrite) = take_mut::<Rewrite<$family>>(rewrite) else {
                return Outcome::PASS.0;
            };
            with::<$family>(about, |about, maps| $stage(about, $($hash,)? maps, rewrite))
        }
    };
}

macro_rules! stages {
    ($family:ty: $in_flows:ident, $in_source_nat:ident, $from_flows:ident, $from_source_nat:ident, $choose:ident, $world:ident, $give_slot:ident, $give_port:ident, $by_port:ident, $quoted_in_source_nat:ident, $quoted_in_flows:ident, $quoted_reply:ident) => {
        #[unsafe(no_mangle)]
        extern "C" fn $in_flows(packet: Handed<Packet<$family>>, hash: u64, hook: u32) -> u64 {
            with::<$family>(packet, |packet, maps| {
                client::in_flows(packet, hash, Hook(hook), maps)
            })
        }

        #[unsafe(no_mangle)]
        extern "C" fn $in_source_nat(
            packet: Handed<Packet<$family>>,
            hash: u64,
            hook: u32,
            second: u32,
        ) -> u64 {
            with::<$family>(packet, |packet, maps| {
                client::in_source_nat(packet, hash, Hook(hook), second != 0, maps)
            })
        }

        #[unsafe(no_mangle)]
        extern "C" fn $from_flows(
            packet: Handed<Packet<$family>>,
            hook: u32,
            rewrite: Lent<Rewrite<$family>>,
        ) -> u64 {
            let Some(rewrite) = take_mut::<Rewrite<$family>>(rewrite) else {
                return Outcome::PASS.0;
            };
            with::<$family>(packet, |packet, maps| {
                reply::from_flows(packet, Hook(hook), maps, rewrite)
            })
        }

        #[unsafe(no_mangle)]
        extern "C" fn $from_source_nat(
            packet: Handed<Packet<$family>>,
            rewrite: Lent<Rewrite<$family>>,
        ) -> u64 {
            let Some(rewrite) = take_mut::<Rewrite<$family>>(rewrite) else {
                return Outcome::PASS.0;
            };
            with::<$family>(packet, |packet, maps| {
                reply::from_source_nat(packet, maps, rewrite)
            })
        }

        #[unsafe(no_mangle)]
        extern "C" fn $choose(packet: Handed<Packet<$family>>, hash: u64, hook: u32) -> u64 {
            with::<$family>(packet, |packet, maps| {
                open::choose_for(packet, hash, Hook(hook), maps)
            })
        }

        #[unsafe(no_mangle)]
        extern "C" fn $world(packet: Handed<Packet<$family>>, hash: u64) -> u64 {
            with::<$family>(packet, |packet, maps| {
                masquerade::in_source_nat(packet, hash, maps)
            })
        }

        #[unsafe(no_mangle)]
        extern "C" fn $give_slot(
            packet: Handed<Packet<$family>>,
            hash: u64,
            backend: u32,
            leaves: u32,
        ) -> u64 {
            with::<$family>(packet, |packet, maps| {
                open::give_slot(packet, hash, backend, leaves, maps)
            })
        }

        #[unsafe(no_mangle)]
        extern "C" fn $give_port(
            packet: Handed<Packet<$family>>,
            hash: u64,
            backend: u32,
            leaves: u32,
            attempt: u32,
        ) -> u64 {
            with::<$family>(packet, |packet, maps| {
                open::give_port(packet, hash, backend, leaves, attempt, maps)
            })
        }

        quoted!($by_port, $family, quoted::by_port);
        quoted!($quoted_in_source_nat, $family, quoted::in_source_nat, hash);
        quoted!($quoted_in_flows, $family, quoted::in_flows, hash);
        quoted!($quoted_reply, $family, quoted::reply);

        impl Stages<$family> for Maps {
            #[inline(always)]
            fn client_in_flows(&self, packet: &Packet<$family>, hash: u64, hook: Hook) -> Outcome {
                Outcome($in_flows(hand(packet), hash, hook.0))
            }

            #[inline(always)]
            fn client_in_source_nat(
                &self,
                packet: &Packet<$family>,
                hash: u64,
                hook: Hook,
                second: bool,
            ) -> Outcome {
                Outcome($in_source_nat(
                    hand(packet),
                    hash,
                    hook.0,
                    u32::from(second),
                ))
            }

            #[inline(always)]
            fn reply_from_flows(
                &self,
                packet: &Packet<$family>,
                hook: Hook,
                rewrite: &mut Rewrite<$family>,
            ) -> Outcome {
                Outcome(lend(rewrite, |rewrite| {
                    $from_flows(hand(packet), hook.0, rewrite)
                }))
            }

            #[inline(always)]
            fn reply_from_source_nat(
                &self,
                packet: &Packet<$family>,
                rewrite: &mut Rewrite<$family>,
            ) -> Outcome {
                Outcome(lend(rewrite, |rewrite| {
                    $from_source_nat(hand(packet), rewrite)
                }))
            }

            #[inline(always)]
            fn quoted_by_port(
                &self,
                about: &Packet<$family>,
                rewrite: &mut Rewrite<$family>,
            ) -> Outcome {
                Outcome(lend(rewrite, |rewrite| $by_port(hand(about), rewrite)))
            }

            #[inline(always)]
            fn quoted_in_source_nat(
                &self,
                about: &Packet<$family>,
                hash: u64,
                rewrite: &mut Rewrite<$family>,
            ) -> Outcome {
                Outcome(lend(rewrite, |rewrite| {
                    $quoted_in_source_nat(hand(about), hash, rewrite)
                }))
            }

            #[inline(always)]
            fn quoted_in_flows(
                &self,
                about: &Packet<$family>,
                hash: u64,
                rewrite: &mut Rewrite<$family>,
            ) -> Outcome {
                Outcome(lend(rewrite, |rewrite| {
                    $quoted_in_flows(hand(about), hash, rewrite)
                }))
            }

            #[inline(always)]
            fn quoted_reply(
                &self,
                about: &Packet<$family>,
                rewrite: &mut Rewrite<$family>,
            ) -> Outcome {
                Outcome(lend(rewrite, |rewrite| $quoted_reply(hand(about), rewrite)))
            }

            #[inline(always)]
            fn choose(&self, packet: &Packet<$family>, hash: u64, hook: Hook) -> Outcome {
                Outcome($choose(hand(packet), hash, hook.0))
            }

            #[inline(always)]
            fn world(&self, packet: &Packet<$family>, hash: u64) -> Outcome {
                Outcome($world(hand(packet), hash))
            }

            #[inline(always)]
            fn give_slot(
                &self,
                packet: &Packet<$family>,
                hash: u64,
                backend: u32,
                leaves: u32,
            ) -> Outcome {
                Outcome($give_slot(hand(packet), hash, backend, leaves))
            }

            #[inline(always)]
            fn give_port(
                &self,
                packet: &Packet<$family>,
                hash: u64,
                backend: u32,
                leaves: u32,
                attempt: u32,
            ) -> Outcome {
                Outcome($give_port(hand(packet), hash, backend, leaves, attempt))
            }
        }
    };
}

stages!(V4: client_flows_v4, client_snat_v4, reply_flows_v4, reply_snat_v4, choose_v4, world_v4, give_slot_v4, give_port_v4, quoted_port_v4, quoted_snat_v4, quoted_flows_v4, quoted_reply_v4);
stages!(V6: client_flows_v6, client_snat_v6, reply_flows_v6, reply_snat_v6, choose_v6, world_v6, give_slot_v6, give_port_v6, quoted_port_v6, quoted_snat_v6, quoted_flows_v6, quoted_reply_v6);

/// What a change of ports does to SCTP's checksum: [`crc32c::of_first_word`].
// Small enough that the compiler would put it everywhere else.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn crc_difference(ports: u32, length: u32) -> u32 {
    crc32c::of_first_word(ports, length)
}

/// The same, for decisions that ask for it.
#[inline(always)]
pub fn crc(word: u32, length: u32) -> u32 {
    crc_difference(word, length)
}

/// Runs a stage over the maps.
#[inline(always)]
fn with<A: Family + 'static>(
    packet: Handed<Packet<A>>,
    stage: impl FnOnce(&Packet<A>, &Maps) -> Outcome,
) -> u64
where
    Packet<A>: Hand,
{
    let (Some(packet), Some(config)) = (take::<Packet<A>>(packet), maps::config()) else {
        return Outcome::PASS.0;
    };
    stage(packet, &Maps { config }).0
}
