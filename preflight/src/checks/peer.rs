//! Other nodes answer.

use crate::{Check, Finding, Input};

pub(super) const CHECK: Check = Check {
    id: "peer",
    about: "whether the other nodes that were named answer, and know the token",
    limit: "they do; a node that is in no cluster yet answers by `gravity check --listen`",
    remedy: "see that `gravity check --listen` or a cluster's controller runs there, and that a \
             firewall lets TCP 3009 through",
    run: check,
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let peers = input.measured.peers.iter();
    peers
        .map(|peer| {
            let finding = |measured: &str| {
                CHECK.finding(format!("node {}", peer.address), measured, "it answers")
            };
            match &peer.seen {
                Ok(seen) => finding(&format!("{} answers", seen.who.hostname)),
                Err(why) => finding(why).fails(CHECK.remedy),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::{only_between, with_peers};

    #[test]
    fn a_node_that_does_not_answer_fails_and_nothing_else_does() {
        only_between(Severity::Failure, "peer", |peer| {
            peer.seen = Err("connection refused".into());
        });
        let fine = with_peers(|_| ());
        assert!(fine.passed().any(|finding| finding.id == "peer"));
    }
}
