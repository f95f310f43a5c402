//! End-to-end tests: real kubectl, real containers, real packets, on clusters that `cargo xtask up` starts.
//!
//! They run in this order, one by one: most share a cluster, the last ones replace it and take it away.

#![forbid(unsafe_code)]

mod bad_containers;
mod bad_hosts;
mod bad_input;
mod bad_pods;
mod bad_services;
mod commands;
mod daily;
mod forwarding;
mod inside;
mod life;
mod names;
mod recovery;
mod rollouts;
mod scheduling;
mod seeing;
mod servers;
mod sharing;
mod start_up;
mod traffic;
mod tunnel;

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Failed, Trial};

use life::Stage;

/// A test: what it shows, and how.
type Test = (&'static str, fn(&Stage) -> anyhow::Result<()>);

const TESTS: &[Test] = &[
    (
        "start_up/up_shows_the_cluster_working",
        start_up::up_shows_the_cluster_working,
    ),
    ("start_up/a_warm_up_is_quick", start_up::a_warm_up_is_quick),
    // For a minute from here on there are requests; the tests up to its end leave the demo's pods alone.
    (
        "recovery/an_agent_dies_under_requests",
        recovery::an_agent_dies_under_requests,
    ),
    (
        "commands/get_lists_every_kind",
        commands::get_lists_every_kind,
    ),
    (
        "commands/get_lists_several_kinds",
        commands::get_lists_several_kinds,
    ),
    (
        "commands/agents_tell_of_their_dataplane",
        commands::agents_tell_of_their_dataplane,
    ),
    (
        "commands/get_prints_every_format",
        commands::get_prints_every_format,
    ),
    ("commands/get_watches", commands::get_watches),
    (
        "commands/describe_tells_a_pods_story",
        commands::describe_tells_a_pods_story,
    ),
    (
        "commands/apply_creates_changes_and_keeps",
        commands::apply_creates_changes_and_keeps,
    ),
    (
        "commands/a_service_changes_its_type",
        commands::a_service_changes_its_type,
    ),
    (
        "commands/delete_waits_until_a_pod_is_gone",
        commands::delete_waits_until_a_pod_is_gone,
    ),
    (
        "commands/containers_share_their_pods_network",
        commands::containers_share_their_pods_network,
    ),
    (
        "inside/logs_show_what_containers_write",
        inside::logs_show_what_containers_write,
    ),
    ("inside/exec_runs_commands", inside::exec_runs_commands),
    (
        "daily/files_are_copied_both_ways",
        daily::files_are_copied_both_ways,
    ),
    (
        "daily/terminals_are_attached",
        daily::terminals_are_attached,
    ),
    (
        "daily/terminals_change_their_size",
        daily::terminals_change_their_size,
    ),
    (
        "daily/logs_go_across_restarts",
        daily::logs_go_across_restarts,
    ),
    (
        "forwarding/ports_of_pods_are_reached_from_here",
        forwarding::ports_of_pods_are_reached_from_here,
    ),
    (
        "daily/use_and_events_are_shown",
        daily::use_and_events_are_shown,
    ),
    (
        "names/pods_find_services_by_name",
        names::pods_find_services_by_name,
    ),
    (
        "bad_input/manifests_get_kubernetes_answers",
        bad_input::manifests_get_kubernetes_answers,
    ),
    (
        "bad_input/raw_requests_get_kubernetes_answers",
        bad_input::raw_requests_get_kubernetes_answers,
    ),
    (
        "bad_pods/a_missing_image_is_told",
        bad_pods::a_missing_image_is_told,
    ),
    (
        "bad_pods/a_missing_command_is_told",
        bad_pods::a_missing_command_is_told,
    ),
    (
        "bad_pods/a_crashing_container_backs_off",
        bad_pods::a_crashing_container_backs_off,
    ),
    (
        "bad_services/a_taken_address_stays_with_who_has_it",
        bad_services::a_taken_address_stays_with_who_has_it,
    ),
    (
        "bad_services/an_unknown_value_is_an_event",
        bad_services::an_unknown_value_is_an_event,
    ),
    (
        "scheduling/anti_affinity_spreads_over_nodes",
        scheduling::anti_affinity_spreads_over_nodes,
    ),
    (
        "scheduling/priority_takes_the_place_of_others",
        scheduling::priority_takes_the_place_of_others,
    ),
    (
        "scheduling/a_stateful_set_keeps_its_data",
        scheduling::a_stateful_set_keeps_its_data,
    ),
    (
        "bad_containers/a_missing_key_is_told",
        bad_containers::a_missing_key_is_told,
    ),
    (
        "bad_containers/a_probe_to_nowhere_is_told",
        bad_containers::a_probe_to_nowhere_is_told,
    ),
    (
        "bad_containers/a_full_volume_is_told",
        bad_containers::a_full_volume_is_told,
    ),
    (
        "bad_containers/a_fork_bomb_stays_inside",
        bad_containers::a_fork_bomb_stays_inside,
    ),
    (
        "bad_containers/a_flood_of_logs_is_held",
        bad_containers::a_flood_of_logs_is_held,
    ),
    (
        "bad_containers/a_deaf_container_is_killed",
        bad_containers::a_deaf_container_is_killed,
    ),
    (
        "bad_hosts/a_wrong_token_is_refused",
        bad_hosts::a_wrong_token_is_refused,
    ),
    (
        "bad_hosts/an_expired_token_is_refused",
        bad_hosts::an_expired_token_is_refused,
    ),
    (
        "bad_hosts/a_used_up_token_is_refused",
        bad_hosts::a_used_up_token_is_refused,
    ),
    (
        "bad_hosts/a_missing_kernel_feature_is_told",
        bad_hosts::a_missing_kernel_feature_is_told,
    ),
    (
        "bad_hosts/a_full_disk_is_told",
        bad_hosts::a_full_disk_is_told,
    ),
    (
        "bad_hosts/who_is_not_root_is_told",
        bad_hosts::who_is_not_root_is_told,
    ),
    (
        "recovery/no_request_of_a_minute_fails",
        recovery::no_request_of_a_minute_fails,
    ),
    (
        "rollouts/rollouts_go_on_stop_and_are_undone",
        rollouts::rollouts_go_on_stop_and_are_undone,
    ),
    ("rollouts/nodes_are_drained", rollouts::nodes_are_drained),
    (
        "traffic/a_pod_reaches_a_service_on_its_own_node",
        traffic::a_pod_reaches_a_service_on_its_own_node,
    ),
    (
        "traffic/pods_reach_each_other_over_nodes",
        traffic::pods_reach_each_other_over_nodes,
    ),
    (
        "traffic/outside_reaches_every_nodes_port",
        traffic::outside_reaches_every_nodes_port,
    ),
    (
        "seeing/a_trace_follows_a_request",
        seeing::a_trace_follows_a_request,
    ),
    ("seeing/flows_are_followed", seeing::flows_are_followed),
    (
        "seeing/metrics_say_what_services_count",
        seeing::metrics_say_what_services_count,
    ),
    (
        "sharing/a_hot_node_sheds_new_flows",
        sharing::a_hot_node_sheds_new_flows,
    ),
    (
        "traffic/no_packet_filter_rule_is_made",
        traffic::no_packet_filter_rule_is_made,
    ),
    (
        "traffic/dead_pods_hand_over_to_the_other_node",
        traffic::dead_pods_hand_over_to_the_other_node,
    ),
    (
        "traffic/no_pods_refuse_at_once",
        traffic::no_pods_refuse_at_once,
    ),
    (
        "recovery/controls_death_loses_nothing",
        recovery::controls_death_loses_nothing,
    ),
    ("life/up_replaces_a_cluster", life::up_replaces_a_cluster),
    (
        "recovery/controls_death_loses_nothing_in_etcd",
        recovery::controls_death_loses_nothing,
    ),
    (
        "life/down_works_after_a_crash_of_up",
        life::down_works_after_a_crash_of_up,
    ),
    (
        "life/up_works_after_a_crash_of_up",
        life::up_works_after_a_crash_of_up,
    ),
    (
        "tunnel/pods_and_services_are_reached_through_it",
        tunnel::pods_and_services_are_reached_through_it,
    ),
    (
        "servers/no_request_fails_whatever_dies",
        servers::no_request_fails_whatever_dies,
    ),
    ("life/down_leaves_nothing", life::down_leaves_nothing),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share clusters.
    arguments.test_threads = Some(1);
    let stage = Arc::new(Stage::default());
    let trials = TESTS
        .iter()
        .map(|(name, test)| {
            let stage = Arc::clone(&stage);
            Trial::test(*name, move || {
                test(&stage).map_err(|error| Failed::from(format!("{error:#}")))
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Statics and leaked references are never dropped; this takes the last cluster away.
    drop(stage);
    conclusion.exit_code()
}
