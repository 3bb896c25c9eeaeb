//! The status as text.

use installer::history::Change;

use super::endpoints::endpoints_text;
use super::report::{Node, Progress, Report};

pub(super) fn text(report: &Report) -> String {
    let cluster = &report.cluster;
    let mut lines = vec![
        format!("Cluster name:    {}", cluster.name),
        format!("Cluster status:  {}", cluster.state),
    ];
    lines.extend(
        cluster
            .reasons
            .iter()
            .map(|reason| reason.replace('\n', "\n                 "))
            .map(|reason| format!("                 {reason}")),
    );
    let warnings = cluster.warnings.iter();
    lines.extend(warnings.map(|warning| format!("Warning:         {warning}")));
    if let Some(check) = &report.status_hook {
        let result = if check.passed { "passed" } else { "failed" };
        let time = console::render::timestamp(check.time);
        lines.push(format!("Status hook:     {result}, {time}"));
    }
    lines.push(format!(
        "Cluster image:   {} {}",
        cluster.image, cluster.version
    ));
    if let Some(flavor) = &cluster.flavor {
        lines.push(format!("Flavor:          {flavor}"));
    }
    if let Some(license) = &cluster.license {
        let nodes = match license.max_nodes {
            Some(1) => "one node, ".to_owned(),
            Some(most) => format!("at most {most} nodes, "),
            None => String::new(),
        };
        let ends = jiff::Timestamp::from_second(license.ends).unwrap_or_default();
        let ends = ends.strftime("%Y-%m-%d");
        lines.push(format!(
            "License:         {}, {nodes}until {ends}",
            license.holder
        ));
    }
    lines.extend(report.operation.as_ref().map(operation_text));
    if !report.nodes.is_empty() {
        lines.push("Cluster nodes:".into());
    }
    lines.extend(report.nodes.iter().flat_map(node_text));
    if !report.changes.is_empty() {
        lines.push("Last changes:".into());
    }
    let changes = report.changes.iter();
    lines.extend(changes.map(|change| format!("  * {}", history_line(change))));
    lines.extend(endpoints_text(&report.endpoints));
    lines.join("\n")
}

fn operation_text(operation: &Progress) -> String {
    let Progress {
        id,
        kind,
        state,
        phases,
        completed,
        current,
    } = operation;
    let mut line = format!("Last operation:  {kind} ({id}), {state}");
    if completed < phases {
        line = format!("{line}: {completed} of {phases} phases are complete");
    }
    for current in current {
        line = format!("{line}\n                 now: {current}");
    }
    line
}

fn node_text(node: &Node) -> Vec<String> {
    let role = match node.role {
        spec::Role::Master => "master",
        spec::Role::Worker => "worker",
    };
    // An image without profiles has none to tell.
    let profile = match node.profile.as_str() {
        "" => String::new(),
        profile => format!("{profile} / "),
    };
    let mut lines = vec![
        format!("  * {} / {} / {profile}{role}", node.hostname, node.address),
        format!("      Kubernetes:  {}", node.kubernetes),
    ];
    if let Some(since) = node.joining_since {
        let since = console::render::timestamp(since);
        lines.push(format!("      Joining:     since {since}"));
    }
    if node.leaving {
        lines.push("      Leaving:     `gravity remove` goes on where it was cut off".into());
    }
    if node.standby {
        lines.push("      Master:      stands by until there is a third one".into());
    }
    lines.extend(node.services.iter().map(|service| {
        format!(
            "      {:<24} {:<9} {} restarts",
            service.name, service.state, service.restarts
        )
    }));
    lines
}

pub(super) fn history_line(change: &Change) -> String {
    let time = console::render::timestamp(change.time);
    let reason = change.state.reason.as_deref();
    let reason = reason.map(|reason| format!(": {reason}"));
    format!(
        "{time}  {} is {}{}",
        change.subject,
        change.state.state,
        reason.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::report::shown;
    use super::super::report::tests::cluster;
    use super::*;

    #[test]
    fn the_text_tells_how_far_an_operation_is_and_what_a_node_is() {
        let mut operation = Progress {
            id: "1".into(),
            kind: "install".into(),
            state: "in_progress".into(),
            phases: 3,
            completed: 1,
            current: vec!["Wait for other nodes".into()],
        };
        assert_eq!(
            operation_text(&operation),
            "Last operation:  install (1), in_progress: 1 of 3 phases are complete\n                 \
             now: Wait for other nodes"
        );
        operation.current.clear();
        operation.completed = 3;
        operation.state = "completed".into();
        assert_eq!(
            operation_text(&operation),
            "Last operation:  install (1), completed"
        );
        let mut node = shown(&cluster().nodes[0], "unknown");
        assert_eq!(node_text(&node)[0], "  * one / 10.0.0.1 / master");
        node.profile = "db".into();
        node.joining_since = Some(Timestamp::UNIX_EPOCH);
        let text = node_text(&node);
        assert_eq!(text[0], "  * one / 10.0.0.1 / db / master");
        assert!(text[2].starts_with("      Joining:     since "), "{text:?}");
    }
}
