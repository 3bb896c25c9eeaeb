//! There is a default route.

use crate::{Check, Finding, Input, Severity};

pub(super) const CHECK: Check = Check {
    id: "default-route",
    about: "routes of the main table",
    limit: "a default route: without one, packets to a Service find no way before kube-proxy can \
            redirect them; a dummy one will do",
    remedy: "add one: `ip route add default via GATEWAY`",
    run: check,
    severities: &[Severity::Warning],
    ..Check::PLAIN
};

fn check(input: &Input<'_>) -> Vec<Finding> {
    let facts = input.facts;
    let default = facts.routes.iter().find(|route| route.is_default());
    let measured = match default {
        Some(route) => format!("by {}", route.interface),
        None => "none".to_owned(),
    };
    vec![
        CHECK
            .finding("default route", measured, "one")
            .rather(default.is_some(), CHECK.remedy),
    ]
}

#[cfg(test)]
mod tests {
    use crate::Severity;
    use crate::testing::only;

    #[test]
    fn no_default_route_warns() {
        only(Severity::Warning, "default-route", |facts| {
            facts.routes.clear()
        });
    }
}
