//! One suite over the three ways in, each alone: socket hooks, tcx and XDP.
//!
//! A row is one function over a way. What a way cannot do its row says, and asserts.

mod addresses;
mod lives;
mod policies;
mod stage;
#[path = "../support/mod.rs"]
mod support;

use stage::Way;

macro_rules! suite {
    ($($module:ident: $($row:ident),+ $(,)?;)+) => {
        mod sockets {
            $($(
                #[test]
                fn $row() {
                    super::$module::$row(super::Way::Sockets);
                }
            )+)+
        }
        mod tcx {
            $($(
                #[test]
                fn $row() {
                    super::$module::$row(super::Way::Tcx);
                }
            )+)+
        }
        mod xdp {
            $($(
                #[test]
                fn $row() {
                    super::$module::$row(super::Way::Xdp);
                }
            )+)+
        }
    };
}

suite! {
    addresses:
        every_frontend_leads_to_every_backend_and_keeps_its_name,
        without_backends_every_call_is_refused_at_once,
        a_pod_reaches_itself_through_its_service,
        whom_a_way_does_not_see_it_does_not_serve,
        one_port_number_leads_elsewhere_by_protocol,
        a_service_without_addresses_translates_nothing;
    policies:
        a_client_keeps_its_backend_until_that_is_gone_or_its_time_is_up,
        only_clients_of_its_ranges_reach_a_load_balancer,
        a_policy_of_local_has_backends_of_this_node_only,
        distributions_and_weights_are_followed;
    lives:
        datagrams_leave_a_backend_that_is_gone_at_once,
        a_connection_outlives_its_backends_removal_but_not_its_pod,
        a_backend_that_terminates_keeps_its_flows_and_has_new_ones_only_if_all_do;
}
