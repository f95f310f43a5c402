//! Rules as kube-proxy makes them, for the paths that stand beside ours.
//!
//! Chains, maps, their order and their comments are those of kube-proxy 1.31 and newer: its iptables mode
//! (pkg/proxy/iptables), its nftables mode (pkg/proxy/nftables) and its IPVS mode. Names hold a number where
//! kube-proxy's hold a hash.

#[cfg(test)]
mod tests;

use std::{fmt::Write, net::Ipv4Addr};

use super::plan::{BACKEND_PORT, Plan, SERVICE_PORT, Variant};

const MARK: &str = "0x4000/0x4000";
/// What kube-proxy is told with `--cluster-cidr`.
const PODS: &str = "10.244.0.0/14";

/// What kube-proxy makes sure of apart from its restores: where its chains hang, and the filter table.
const IPTABLES_FILTER: &str = "*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment \"block incoming localnet connections\" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";
const IPTABLES_HOOKS: &str =
    "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
";

/// What `iptables-restore` is given for all services.
pub fn iptables(plan: &Plan) -> String {
    let all: Vec<u32> = (0..plan.services).collect();
    let nat = iptables_nat(plan, IPTABLES_HOOKS, &all, Variant::Loaded);
    format!("{IPTABLES_FILTER}{nat}")
}

/// What `iptables-restore --noflush` is given when a service's endpoints change: like kube-proxy, which writes what
/// leads to each service anew, and the chains of those alone that have changed.
pub fn iptables_update(plan: &Plan, service: u32, variant: Variant) -> String {
    iptables_nat(plan, "", &[service], variant)
}

fn iptables_nat(plan: &Plan, hooks: &str, changed: &[u32], variant: Variant) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    let protocol = plan.protocol_name();
    for service in 0..plan.services {
        let address = Plan::service(service);
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES -m comment --comment \"{} cluster IP\" -m {protocol} -p {protocol} -d {address} --dport {SERVICE_PORT} -j {}",
            name(service),
            service_chain(service),
        );
    }
    let _ = writeln!(
        rules,
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
    );
    for &service in changed {
        iptables_service(plan, service, variant, &mut chains, &mut rules);
    }
    // A chain that is named is flushed first.
    format!(
        "*nat\n:KUBE-NODEPORTS - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
         {chains}{hooks}{rules}\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
         COMMIT\n"
    )
}

fn iptables_service(
    plan: &Plan,
    service: u32,
    variant: Variant,
    chains: &mut String,
    rules: &mut String,
) {
    let (name, chain) = (name(service), service_chain(service));
    let (address, protocol) = (Plan::service(service), plan.protocol_name());
    let endpoints = plan.endpoints(variant);
    let _ = writeln!(chains, ":{chain} - [0:0]");
    let _ = writeln!(
        rules,
        "-A {chain} -m comment --comment \"{name} cluster IP\" -m {protocol} -p {protocol} -d {address} --dport {SERVICE_PORT} ! -s {PODS} -j KUBE-MARK-MASQ"
    );
    for (left, &backend) in (1..=endpoints.len()).rev().zip(&endpoints) {
        let endpoint = format!("KUBE-SEP-{service:08X}{:08X}", u32::from(backend));
        let chance = if left == 1 {
            String::new()
        } else {
            let chance = 1.0 / f64::from(u32::try_from(left).unwrap_or(u32::MAX));
            format!(" -m statistic --mode random --probability {chance:.10}")
        };
        let _ = writeln!(chains, ":{endpoint} - [0:0]");
        let _ = writeln!(
            rules,
            "-A {chain} -m comment --comment \"{name} -> {backend}:{BACKEND_PORT}\"{chance} -j {endpoint}\n\
             -A {endpoint} -m comment --comment {name} -s {backend} -j KUBE-MARK-MASQ\n\
             -A {endpoint} -m comment --comment {name} -m {protocol} -p {protocol} -j DNAT --to-destination {backend}:{BACKEND_PORT}"
        );
    }
}

/// As kube-proxy names a service's port in comments.
fn name(service: u32) -> String {
    format!("bench/s{service}:p{SERVICE_PORT}")
}

fn service_chain(service: u32) -> String {
    format!("KUBE-SVC-{service:016X}")
}

const NFT_BASE: &str = "add table ip kube-proxy { comment \"rules for kube-proxy\" ; }
add set ip kube-proxy cluster-ips { type ipv4_addr ; comment \"Active ClusterIPs\" ; }
add set ip kube-proxy nodeport-ips { type ipv4_addr ; comment \"IPs that accept NodePort traffic\" ; }
add map ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment \"destinations that are subject to LoadBalancerSourceRanges\" ; }
add map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict ; comment \"vmap to drop or reject packets to service nodeports with no endpoints\" ; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; comment \"vmap to drop or reject packets to services with no endpoints\" ; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment \"ClusterIP, ExternalIP and LoadBalancer IP traffic\" ; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; comment \"NodePort traffic\" ; }
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy filter-prerouting-pre-dnat { type filter hook prerouting priority -110 ; }
add chain ip kube-proxy filter-output-pre-dnat { type filter hook output priority -110 ; }
add chain ip kube-proxy filter-forward { type filter hook forward priority 0 ; }
add chain ip kube-proxy filter-input { type filter hook input priority 0 ; }
add chain ip kube-proxy filter-output { type filter hook output priority 0 ; }
add chain ip kube-proxy firewall-check
add chain ip kube-proxy mark-for-masquerade
add chain ip kube-proxy masquerading
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy reject-chain { comment \"helper for @no-endpoint-services / @no-endpoint-nodeports\" ; }
add chain ip kube-proxy services
add chain ip kube-proxy service-endpoints-check
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\"
add rule ip kube-proxy cluster-ips-check ip daddr { 10.96.0.0/12 } drop comment \"Drop traffic to unallocated ClusterIPs\"
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy reject-chain reject
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
";

/// What `nft -f` is given for all services.
pub fn nftables(plan: &Plan) -> String {
    let protocol = plan.protocol_name();
    // kube-proxy, too, has all chains made before what leads to them.
    let (mut text, mut elements) = (NFT_BASE.to_owned(), String::new());
    for service in 0..plan.services {
        nft_service(plan, service, Variant::Loaded, &mut text);
        let address = Plan::service(service);
        let _ = writeln!(
            elements,
            "add element ip kube-proxy cluster-ips {{ {address} }}\n\
             add element ip kube-proxy service-ips {{ {address} . {protocol} . {SERVICE_PORT} : goto {} }}",
            nft_service_chain(plan, service)
        );
    }
    text + &elements
}

/// What `nft -f` is given when a service's endpoints change.
pub fn nftables_update(plan: &Plan, service: u32, variant: Variant) -> String {
    let mut text = String::new();
    nft_service(plan, service, variant, &mut text);
    text
}

/// Makes a service's chains, or makes them anew.
fn nft_service(plan: &Plan, service: u32, variant: Variant, text: &mut String) {
    let protocol = plan.protocol_name();
    let chain = nft_service_chain(plan, service);
    let endpoint = |backend: Ipv4Addr| {
        format!(
            "endpoint-{service:08X}-bench/s{service}/{protocol}/p{SERVICE_PORT}__{backend}/{BACKEND_PORT}"
        )
    };
    let endpoints = plan.endpoints(variant);
    for &backend in &endpoints {
        let chain = endpoint(backend);
        let _ = writeln!(
            text,
            "add chain ip kube-proxy {chain}\nflush chain ip kube-proxy {chain}\n\
             add rule ip kube-proxy {chain} ip saddr {backend} jump mark-for-masquerade\n\
             add rule ip kube-proxy {chain} meta l4proto {protocol} dnat to {backend}:{BACKEND_PORT}"
        );
    }
    let choices: Vec<String> = (endpoints.iter().enumerate())
        .map(|(number, &backend)| format!("{number} : goto {}", endpoint(backend)))
        .collect();
    let _ = writeln!(
        text,
        "add chain ip kube-proxy {chain}\nflush chain ip kube-proxy {chain}\n\
         add rule ip kube-proxy {chain} ip daddr {} ip saddr != {PODS} jump mark-for-masquerade\n\
         add rule ip kube-proxy {chain} numgen random mod {} vmap {{ {} }}",
        Plan::service(service),
        endpoints.len(),
        choices.join(" , ")
    );
}

fn nft_service_chain(plan: &Plan, service: u32) -> String {
    format!(
        "service-{service:08X}-bench/s{service}/{}/p{SERVICE_PORT}",
        plan.protocol_name()
    )
}

/// The device whose addresses make the node take what is for services; what `ip -batch` is given.
pub fn ipvs_device(plan: &Plan) -> String {
    let mut text = String::from("link add kube-ipvs0 type dummy\n");
    for service in 0..plan.services {
        let _ = writeln!(
            text,
            "address add {}/32 dev kube-ipvs0",
            Plan::service(service)
        );
    }
    text
}

/// What `ipvsadm -R` is given for all services. The spare endpoints are there too, without weight.
pub fn ipvs(plan: &Plan) -> String {
    let mut text = String::new();
    for service in 0..plan.services {
        let _ = writeln!(text, "-A {} -s rr", ipvs_server(plan, service));
        for backend in plan.endpoints(Variant::Loaded) {
            ipvs_backend(plan, service, backend, ('a', 1), &mut text);
        }
        ipvs_backend(plan, service, plan.spare(), ('a', 0), &mut text);
    }
    text
}

/// What `ipvsadm -R` is given when a service's endpoints change: what leaves gets no weight, as kube-proxy does as long as
/// there are connections to it.
pub fn ipvs_update(plan: &Plan, service: u32, (before, after): (Variant, Variant)) -> String {
    let (before, after) = (plan.endpoints(before), plan.endpoints(after));
    let mut text = String::new();
    for &backend in after.iter().filter(|address| !before.contains(address)) {
        ipvs_backend(plan, service, backend, ('e', 1), &mut text);
    }
    for &backend in before.iter().filter(|address| !after.contains(address)) {
        ipvs_backend(plan, service, backend, ('e', 0), &mut text);
    }
    text
}

fn ipvs_backend(
    plan: &Plan,
    service: u32,
    backend: Ipv4Addr,
    (command, weight): (char, u32),
    text: &mut String,
) {
    let _ = writeln!(
        text,
        "-{command} {} -r {backend}:{BACKEND_PORT} -m -w {weight}",
        ipvs_server(plan, service)
    );
}

fn ipvs_server(plan: &Plan, service: u32) -> String {
    let flag = if plan.protocol_name() == "udp" {
        "-u"
    } else {
        "-t"
    };
    format!("{flag} {}:{SERVICE_PORT}", Plan::service(service))
}
