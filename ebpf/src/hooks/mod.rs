//! The entry points, one file a hook.

mod node_egress;
mod pod_egress;
mod slow_tc;
mod slow_xdp;
mod socket_connect;
mod socket_peer;
mod socket_receive;
mod socket_release;
mod socket_send;
mod uplink_ingress;
mod xdp_pass;
mod xdp_uplink;
