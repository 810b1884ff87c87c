"""Recording and alerting rules: objectives by the multi-window burn rate, and what breaks in a cluster like this one.

An alert is a name, an expression, how long it has to hold, a severity and two sentences: what is wrong, and where to
look. `page` means that users suffer or will within the hour, `ticket` that somebody should look in working hours.
"""

WINDOWS = ["5m", "30m", "1h", "6h"]
BY = "by (namespace, model_name)"
OUR_FAULT = 'kind=~"no_node|node_lost|deadline|internal"'

# Indicator → (share that may be bad, what is bad, how to compute the share over a window `%s`).
OBJECTIVES = {
    "first_token_late": (0.01, "first tokens later than 2 s", (
        '1 - sum {by} (rate(vllm:time_to_first_token_seconds_bucket{{le="2"}}[{window}]))'
        " / sum {by} (rate(vllm:time_to_first_token_seconds_count[{window}]))"
    )),
    "next_token_late": (0.01, "tokens more than 0.2 s after the one before", (
        '1 - sum {by} (rate(vllm:inter_token_latency_seconds_bucket{{le="0.2"}}[{window}]))'
        " / sum {by} (rate(vllm:inter_token_latency_seconds_count[{window}]))"
    )),
    "failed": (0.001, "sequences that failed by our fault", (
        '(sum {by} (rate(vllm:request_success_total{{finished_reason="error"}}[{window}]))'
        " + sum {by} (rate(amoe_gateway_refused_total{{{fault}}}[{window}])))"
        " / (sum {by} (rate(vllm:request_success_total[{window}]))"
        " + sum {by} (rate(amoe_gateway_refused_total{{{fault}}}[{window}])))"
    )),
}
# (name, times the budget's pace, long window, short window, for, severity): a month's budget would last two days, or five.
BURNS = [("Fast", 14.4, "1h", "5m", "2m", "page"), ("Slow", 6, "6h", "30m", "15m", "ticket")]
TITLES = {"first_token_late": "FirstTokens", "next_token_late": "NextTokens", "failed": "Errors"}

ALERTS = [
    ("AmoeNoNodeTakesWork", "max by (namespace) (amoe_gateway_attention_nodes_ready) == 0", "30s", "page",
     "No attention node takes work: requests wait, then fail.",
     "Board, rows \"Control plane\" and \"Links\": are attention nodes members, and linked to expert nodes?"),
    ("AmoeQueueFull",
     'sum by (namespace) (rate(amoe_gateway_refused_total{kind="queue_full"}[5m]))'
     " / (sum by (namespace) (rate(vllm:request_params_n_count[5m]))"
     ' + sum by (namespace) (rate(amoe_gateway_refused_total{kind="queue_full"}[5m]))) > 0.01', "5m", "page",
     "{{ $value | humanizePercentage }} of requests get 429: the cluster is too small for its load.",
     "Add nodes of the kind that works all the time: board, row \"Where a step's time goes\"."),
    ("AmoeSequencesWait", "min_over_time(amoe_attention_sequences_waiting[10m]) > 0", "5m", "ticket",
     "Sequences have waited for admission on {{ $labels.node }} all the time for ten minutes.",
     "KV blocks or `bounds.sequences_max` are too few, or there are too few attention nodes."),
    ("AmoeTokensStandStill", "time() - max by (namespace, node) (amoe_attention_last_token_seconds > 0) > 60", "1m", "page",
     "No token has come through all layers of {{ $labels.node }} for {{ $value | humanizeDuration }}, its own canaries included.",
     "Its `/readyz` names the layer, and the expert nodes that its rows are with."),
    ("AmoePairsStuck", "amoe_expert_oldest_pair_seconds > 5", "1m", "page",
     "A pair has been queued on {{ $labels.node }} for {{ $value | humanizeDuration }}.",
     "The node does not run what it took in; its log says why. Deleting the pod sends its work elsewhere."),
    ("AmoeStraggler", "max by (namespace, node) (amoe_coordinator_node_slowdown) > 2", "5m", "ticket",
     "Expert node {{ $labels.node }} takes {{ $value | humanize }} times as long as it should.",
     "A hot or shared device, a bad link. Work moves away from it as far as replicas and plans allow."),
    ("AmoePlanDoesNotFlip", 'max by (namespace) (amoe_coordinator_plan_epoch{plan="target"}) > 0', "15m", "ticket",
     "Plan {{ $value }} has been prepared for a quarter of an hour and does not serve yet.",
     "`amoe plan show` lists the nodes that it waits for."),
    ("AmoeNoLeader", "sum by (namespace) (amoe_coordinator_leader) < 1 or absent(amoe_coordinator_leader) == 1",
     "1m", "page",
     "No coordinator leads: requests go on, and lost nodes are not replaced.",
     "Are coordinators running, and does the state store answer them?"),
    ("AmoeTwoLeaders", "sum by (namespace) (amoe_coordinator_leader) > 1", "1m", "ticket",
     "Several coordinators think that they lead.",
     "One is cut off from the state store and has not noticed, or two clusters share a namespace."),
    ("AmoeStoreDown", "max by (namespace) (amoe_coordinator_store_up) == 0", "2m", "page",
     "The state store does not answer any coordinator.",
     "Requests go on, and nothing can change until it is back."),
    ("AmoeNodeNotReady",
     'max by (namespace, role, health) (amoe_coordinator_members{health!="ready"}) > 0', "15m", "ticket",
     "{{ $value }} members of role {{ $labels.role }} have been {{ $labels.health }} for a quarter of an hour.",
     "Their `/readyz` says what they wait for."),
    ("AmoeNodesLost", "sum by (namespace, role) (increase(amoe_coordinator_members_lost_total[15m])) > 2", "0s", "ticket",
     "{{ $value | humanize }} members of role {{ $labels.role }} were lost within a quarter of an hour.",
     "Restarts of pods and their reasons; messages of the kernel about memory."),
    ("AmoeKvPressure",
     "1 - sum by (namespace) (amoe_attention_kv_blocks_free) / sum by (namespace) (amoe_attention_kv_blocks) > 0.95",
     "10m", "ticket",
     "{{ $value | humanizePercentage }} of all KV blocks are in use.",
     "Further sequences wait or displace others: add attention nodes, or give them more `bounds.kv_bytes`."),
    ("AmoePreemptions", "sum by (namespace) (rate(amoe_attention_preemptions_total[10m])) > 0.5", "10m", "ticket",
     "{{ $value | humanize }} sequences a second are thrown out and computed anew for want of KV blocks.",
     "As for AmoeKvPressure."),
    ("AmoeMalformedFrames", "sum by (namespace, node) (increase(amoe_link_frames_malformed_total[15m])) > 0", "0s", "ticket",
     "{{ $labels.node }} closed links because of what came over them.",
     "Nodes of different versions, or somebody who is no node at all."),
    ("AmoeVersionsDiffer", "count by (namespace) (count by (namespace, version) (amoe_build_info)) > 1", "1h", "ticket",
     "{{ $value }} versions have run beside each other for an hour.", "A rollout got stuck."),
]


def recorded(indicator, window):
    return f"amoe:{indicator}:ratio_rate{window}"


def recording():
    for indicator, (_, _, share) in OBJECTIVES.items():
        for window in WINDOWS:
            yield {"record": recorded(indicator, window), "expr": share.format(by=BY, window=window, fault=OUR_FAULT)}


def alert(name, expression, lasts, severity, summary, look):
    return {
        "alert": name,
        "expr": expression,
        "for": lasts,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": look},
    }


def burning():
    for indicator, (budget, bad, _) in OBJECTIVES.items():
        for name, times, long, short, lasts, severity in BURNS:
            limit = f"{times * budget:.4g}"
            expression = f"{recorded(indicator, long)} > {limit} and {recorded(indicator, short)} > {limit}"
            summary = f"{{{{ $value | humanizePercentage }}}} of {bad} within {long}, where {budget:.1%} may be."
            look = "Board, rows \"What clients see\" and \"Where a step's time goes\"."
            yield alert(f"Amoe{TITLES[indicator]}Burn{name}", expression, lasts, severity, summary, look)


def rules():
    return {
        "groups": [
            {"name": "amoe-objectives", "rules": [*recording(), *burning()]},
            {"name": "amoe-cluster", "rules": [alert(*row) for row in ALERTS]},
        ],
    }
