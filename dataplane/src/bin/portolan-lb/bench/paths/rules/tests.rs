//! The rules' shape, beside what kube-proxy's own tests (pkg/proxy/iptables and pkg/proxy/nftables, proxier_test.go) say
//! that it makes of a Service with a cluster IP. Only names and addresses are ours.

use portolan_dataplane::model::Protocol;

use super::*;

const PLAN: Plan = Plan {
    services: 1,
    endpoints: 2,
    protocol: Protocol::Tcp,
};

const IPTABLES_NAT: &str = r#"*nat
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SVC-1 - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 -j KUBE-SVC-1
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-1 -m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 ! -s 10.0.0.0/8 -j KUBE-MARK-MASQ
-A KUBE-SVC-1 -m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-1
-A KUBE-SEP-1 -m comment --comment ns1/svc1:p80 -s 10.180.0.1 -j KUBE-MARK-MASQ
-A KUBE-SEP-1 -m comment --comment ns1/svc1:p80 -m tcp -p tcp -j DNAT --to-destination 10.180.0.1:80
-A KUBE-SVC-1 -m comment --comment "ns1/svc1:p80 -> 10.180.0.2:80" -j KUBE-SEP-2
-A KUBE-SEP-2 -m comment --comment ns1/svc1:p80 -s 10.180.0.2 -j KUBE-MARK-MASQ
-A KUBE-SEP-2 -m comment --comment ns1/svc1:p80 -m tcp -p tcp -j DNAT --to-destination 10.180.0.2:80
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
COMMIT
"#;

const NFTABLES_SERVICE: &str = r"
add chain ip kube-proxy service-1-ns1/svc1/tcp/p80
add rule ip kube-proxy service-1-ns1/svc1/tcp/p80 ip daddr 172.30.0.41 ip saddr != 10.0.0.0/8 jump mark-for-masquerade
add rule ip kube-proxy service-1-ns1/svc1/tcp/p80 numgen random mod 2 vmap { 0 : goto endpoint-1-ns1/svc1/tcp/p80__10.180.0.1/80 , 1 : goto endpoint-1-ns1/svc1/tcp/p80__10.180.0.2/80 }
add chain ip kube-proxy endpoint-1-ns1/svc1/tcp/p80__10.180.0.1/80
add rule ip kube-proxy endpoint-1-ns1/svc1/tcp/p80__10.180.0.1/80 ip saddr 10.180.0.1 jump mark-for-masquerade
add rule ip kube-proxy endpoint-1-ns1/svc1/tcp/p80__10.180.0.1/80 meta l4proto tcp dnat to 10.180.0.1:80
add chain ip kube-proxy endpoint-1-ns1/svc1/tcp/p80__10.180.0.2/80
add rule ip kube-proxy endpoint-1-ns1/svc1/tcp/p80__10.180.0.2/80 ip saddr 10.180.0.2 jump mark-for-masquerade
add rule ip kube-proxy endpoint-1-ns1/svc1/tcp/p80__10.180.0.2/80 meta l4proto tcp dnat to 10.180.0.2:80
add element ip kube-proxy cluster-ips { 172.30.0.41 }
add element ip kube-proxy service-ips { 172.30.0.41 . tcp . 80 : goto service-1-ns1/svc1/tcp/p80 }
";

/// Our names and addresses replaced by those of kube-proxy's tests.
fn renamed(text: &str) -> String {
    [
        ("KUBE-SVC-0000000000000000", "KUBE-SVC-1"),
        ("KUBE-SEP-000000000AF50001", "KUBE-SEP-1"),
        ("KUBE-SEP-000000000AF50002", "KUBE-SEP-2"),
        ("-00000000-", "-1-"),
        ("bench/s0", "ns1/svc1"),
        ("10.244.0.0/14", "10.0.0.0/8"),
        ("10.96.1.0", "172.30.0.41"),
        ("10.245.0.1:8080", "10.180.0.1:80"),
        ("10.245.0.2:8080", "10.180.0.2:80"),
        ("10.245.0.1/8080", "10.180.0.1/80"),
        ("10.245.0.2/8080", "10.180.0.2/80"),
        ("10.245.0.1", "10.180.0.1"),
        ("10.245.0.2", "10.180.0.2"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (ours, theirs)| {
        text.replace(ours, theirs)
    })
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn iptables_rules_are_those_of_kube_proxy() {
    let text = renamed(&iptables(&PLAN));
    let (filter, nat) = text.split_at(text.find("*nat").expect("a nat table"));
    assert_eq!(nat, IPTABLES_NAT);
    for rule in [
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ] {
        assert!(filter.contains(rule), "{rule}");
    }
}

#[test]
fn nftables_rules_are_those_of_kube_proxy() {
    let text = renamed(&nftables(&PLAN));
    let base = text.lines().take(NFT_BASE.lines().count());
    assert!(base.eq(NFT_BASE.lines()));
    let rest: String = (text.lines().skip(NFT_BASE.lines().count()))
        // They are for chains that are there already.
        .filter(|line| !line.starts_with("flush"))
        .fold(String::new(), |text, line| text + line + "\n");
    assert_eq!(sorted(&rest), sorted(NFTABLES_SERVICE));
}

#[test]
fn an_update_names_the_new_endpoints_alone() {
    let plan = Plan {
        services: 3,
        ..PLAN
    };
    let spare = plan.spare().to_string();
    let nft = nftables_update(&plan, 1, Variant::Changed);
    let iptables = iptables_update(&plan, 1, Variant::Changed);
    for text in [&nft, &iptables] {
        assert!(text.contains(&spare) && !text.contains("10.245.0.1:"));
        assert!(!text.contains("s2/tcp") && !text.contains("s2:p80 ->"));
    }
    assert_eq!(iptables.matches("-A KUBE-SERVICES").count(), 4);
    assert_eq!(
        ipvs_update(&plan, 1, (Variant::Loaded, Variant::Changed)),
        "-e -t 10.96.1.1:80 -r 10.245.0.3:8080 -m -w 1\n-e -t 10.96.1.1:80 -r 10.245.0.1:8080 -m -w 0\n"
    );
}
