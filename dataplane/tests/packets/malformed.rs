//! Headers that contradict themselves or that the programs do not know: left alone.

use super::*;

/// What is wrong, and what makes it so.
type Spoiled = (String, Spoil);
type Spoil = Box<dyn Fn(&mut Vec<u8>)>;

impl Rows {
    /// Every way to be wrong, by every program.
    pub fn malformed(&mut self) {
        for (program, to, from) in [
            (POD, CLUSTER, CLIENT),
            (UPLINK, EXTERNAL, WORLD),
            (XDP, EXTERNAL, WORLD),
        ] {
            for (name, spoil) in self.ways_to_be_wrong(program) {
                self.row(&format!("{name}, {program}"), |rows, port| {
                    let packet = rows.packet(
                        (rows.at(from), port),
                        (rows.at(to), port_of(Behind::Remote)),
                    );
                    let mut frame = packet.bytes();
                    spoil(&mut frame);
                    let verdict = if program == XDP { XDP_PASS } else { TC_PASS };
                    vec![Step {
                        program,
                        frame: frame.clone().into(),
                        verdict,
                        expected: frame.into(),
                    }]
                });
            }
        }
    }

    fn ways_to_be_wrong(&self, program: &str) -> Vec<Spoiled> {
        let is_v4 = self.family == 0;
        let network = if is_v4 { 34 } else { 54 };
        let transport = match self.protocol {
            protocol::TCP => 20,
            protocol::UDP => 8,
            _ => 16,
        };
        // Where the length stands, and what it counts beside the transport.
        let (length, header) = if is_v4 { (16, 20) } else { (18, 0) };
        let mut ways: Vec<Spoiled> = Vec::new();
        let mut way = |name: &str, spoil: Spoil| ways.push((name.to_owned(), spoil));
        way("another frame type", Box::new(|frame| frame[13] = 0x06));
        way("another version", Box::new(|frame| frame[14] ^= 0x20));
        way(
            "a length beyond the frame",
            Box::new(move |frame| frame[length + 1] += 1),
        );
        way(
            "another protocol",
            Box::new(move |frame| frame[if is_v4 { 23 } else { 20 }] = 47),
        );
        let short = u16::try_from(header + transport - 1).expect("a small number");
        way(
            "a length too short for the transport",
            Box::new(move |frame| frame[length..length + 2].copy_from_slice(&short.to_be_bytes())),
        );
        if is_v4 {
            way("a header of four words", Box::new(|frame| frame[14] = 0x44));
        }
        if self.protocol == protocol::TCP {
            way(
                "a TCP header of four words",
                Box::new(move |frame| frame[network + 12] = 0x40),
            );
        }
        // BPF_PROG_TEST_RUN makes no socket buffer whose IP header is cut.
        let first = if program == XDP { 14 } else { network };
        for length in first..network + transport {
            way(
                &format!("cut to {length} bytes"),
                Box::new(move |frame| frame.truncate(length)),
            );
        }
        ways
    }
}
