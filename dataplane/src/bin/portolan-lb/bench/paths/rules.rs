//! Rules as kube-proxy makes them, for the paths that stand beside ours.
//!
//! The chains, maps and their order are those of kube-proxy's iptables mode (pkg/proxy/iptables) and nftables mode
//! (pkg/proxy/nftables); the names of services are shorter.

use std::fmt::Write;

use super::plan::{BACKEND_PORT, Plan, SERVICE_PORT};

const MARK: &str = "0x4000/0x4000";
const PODS: &str = "10.244.0.0/14";

/// What `iptables-restore` is given for all services.
pub fn iptables(plan: &Plan) -> String {
    let mut chains = String::new();
    let mut rules = String::new();
    let protocol = plan.protocol_name();
    for service in 0..plan.services {
        let address = plan.service(service);
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES -d {address}/32 -p {protocol} -m comment --comment \"bench/s{service} cluster IP\" -m {protocol} --dport {SERVICE_PORT} -j KUBE-SVC-{service:012X}"
        );
        iptables_service(plan, service, 0, &mut chains, &mut rules);
    }
    format!(
        "*filter\n:KUBE-FORWARD - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n\
         -A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A FORWARD -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark {MARK} -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n\
         *nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         {chains}\
         -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {rules}\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n"
    )
}

/// What `iptables-restore --noflush` is given when a service's first endpoint becomes another.
pub fn iptables_update(plan: &Plan, service: u32, variant: u32) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    iptables_service(plan, service, variant, &mut chains, &mut rules);
    // A chain that is named is flushed first.
    format!("*nat\n{chains}{rules}COMMIT\n")
}

fn iptables_service(
    plan: &Plan,
    service: u32,
    variant: u32,
    chains: &mut String,
    rules: &mut String,
) {
    let address = plan.service(service);
    let protocol = plan.protocol_name();
    let _ = writeln!(chains, ":KUBE-SVC-{service:012X} - [0:0]");
    let _ = writeln!(
        rules,
        "-A KUBE-SVC-{service:012X} ! -s {PODS} -d {address}/32 -p {protocol} -m {protocol} --dport {SERVICE_PORT} -j KUBE-MARK-MASQ"
    );
    for endpoint in 0..plan.endpoints {
        let chain = format!("KUBE-SEP-{service:08X}{endpoint:04X}");
        let backend = plan.endpoint(service, endpoint, variant);
        let left = plan.endpoints - endpoint;
        let chance = if left == 1 {
            String::new()
        } else {
            format!(
                " -m statistic --mode random --probability {:.10}",
                1.0 / f64::from(left)
            )
        };
        let _ = writeln!(chains, ":{chain} - [0:0]");
        let _ = writeln!(
            rules,
            "-A KUBE-SVC-{service:012X} -m comment --comment \"bench/s{service} -> {backend}:{BACKEND_PORT}\"{chance} -j {chain}\n\
             -A {chain} -s {backend}/32 -j KUBE-MARK-MASQ\n\
             -A {chain} -p {protocol} -m {protocol} -j DNAT --to-destination {backend}:{BACKEND_PORT}"
        );
    }
}

/// What `nft -f` is given for all services.
pub fn nftables(plan: &Plan) -> String {
    let protocol = plan.protocol_name();
    let mut chains = String::new();
    let mut elements = String::new();
    let mut addresses = String::new();
    for service in 0..plan.services {
        let address = plan.service(service);
        let comma = if service == 0 { "" } else { ", " };
        let _ = write!(
            elements,
            "{comma}{address} . {protocol} . {SERVICE_PORT} : goto service-{service}"
        );
        let _ = write!(addresses, "{comma}{address}");
        nft_service(plan, service, 0, &mut chains);
    }
    format!(
        "table ip kube-proxy {{\n\
         chain mark-for-masquerade {{ mark set mark or 0x4000\n}}\n\
         chain masquerading {{\nmark and 0x4000 == 0 return\nmark set mark xor 0x4000\nmasquerade fully-random\n}}\n\
         {chains}\
         set cluster-ips {{ type ipv4_addr\nelements = {{ {addresses} }}\n}}\n\
         map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict\n}}\n\
         map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict\n}}\n\
         map service-nodeports {{ type inet_proto . inet_service : verdict\n}}\n\
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict\nelements = {{ {elements} }}\n}}\n\
         chain services {{\nip daddr . meta l4proto . th dport vmap @service-ips\n\
         fib daddr type local meta l4proto . th dport vmap @service-nodeports\n}}\n\
         chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips\n}}\n\
         chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services\n}}\n\
         chain cluster-ips-check {{ ip daddr @cluster-ips drop\n}}\n\
         chain nat-prerouting {{ type nat hook prerouting priority dstnat\njump services\n}}\n\
         chain nat-output {{ type nat hook output priority -100\njump services\n}}\n\
         chain nat-postrouting {{ type nat hook postrouting priority srcnat\njump masquerading\n}}\n\
         chain filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110\nct state new jump firewall-check\n}}\n\
         chain filter-output-pre-dnat {{ type filter hook output priority -110\nct state new jump firewall-check\n}}\n\
         chain filter-forward {{ type filter hook forward priority 0\nct state new jump service-endpoints-check\nct state new jump cluster-ips-check\n}}\n\
         chain filter-output {{ type filter hook output priority 0\nct state new jump service-endpoints-check\n}}\n}}\n"
    )
}

/// What `nft -f` is given when a service's first endpoint becomes another.
pub fn nftables_update(plan: &Plan, service: u32, variant: u32) -> String {
    let mut text = format!("flush chain ip kube-proxy service-{service}\n");
    for endpoint in 0..plan.endpoints {
        let _ = writeln!(
            text,
            "flush chain ip kube-proxy endpoint-{service}-{endpoint}"
        );
    }
    let mut chains = String::new();
    nft_service(plan, service, variant, &mut chains);
    let _ = write!(text, "table ip kube-proxy {{\n{chains}}}\n");
    text
}

fn nft_service(plan: &Plan, service: u32, variant: u32, chains: &mut String) {
    let address = plan.service(service);
    let protocol = plan.protocol_name();
    let mut choices = String::new();
    for endpoint in 0..plan.endpoints {
        let backend = plan.endpoint(service, endpoint, variant);
        let comma = if endpoint == 0 { "" } else { ", " };
        let _ = write!(
            choices,
            "{comma}{endpoint} : goto endpoint-{service}-{endpoint}"
        );
        let _ = writeln!(
            chains,
            "chain endpoint-{service}-{endpoint} {{\nip saddr {backend} jump mark-for-masquerade\nmeta l4proto {protocol} dnat to {backend}:{BACKEND_PORT}\n}}"
        );
    }
    let _ = writeln!(
        chains,
        "chain service-{service} {{\nip daddr {address} {protocol} dport {SERVICE_PORT} ip saddr != {PODS} jump mark-for-masquerade\nnumgen random mod {} vmap {{ {choices} }}\n}}",
        plan.endpoints
    );
}
