//! The entry points, one file a hook.

mod pod_egress;
mod uplink_ingress;
mod xdp_pass;
mod xdp_uplink;
