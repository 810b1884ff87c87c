"""The Grafana board: what its panels ask, row by row, and the JSON around that.

A panel is a title, a unit, a sentence for whoever wonders, and queries with legends. In queries `@` stands for the
selector of the chosen namespaces, which is empty-proof: without Kubernetes there is no such label.
"""

NAMESPACE = 'namespace=~"$namespace"'
WIDTH, HEIGHT, COLUMNS = 8, 8, 24


def quantiles(metric):
    """Median and tail of a histogram, over all gateways."""
    return [
        (f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{@}}[$__rate_interval])))", f"p{round(100 * q)}")
        for q in (0.5, 0.95, 0.99)
    ]


def rate(metric, by, legend=None):
    return (f"sum by ({by}) (rate({metric}[$__rate_interval]))", legend or f"{{{{{by}}}}}")


def mean(histogram, by="node"):
    over = f"sum by ({by}) (rate({histogram}_%s{{@}}[$__rate_interval]))"
    return (f"{over % 'sum'} / {over % 'count'}", f"{{{{{by}}}}}")


ROWS = [
    ("What clients see", [
        ("Tokens", "short", "Tokens a second, taken in and generated.", [
            ("sum(rate(vllm:prompt_tokens_total{@}[$__rate_interval]))", "prompt"),
            ("sum(rate(vllm:generation_tokens_total{@}[$__rate_interval]))", "generated"),
        ]),
        ("Time to first token", "s", "From a request's arrival to a sequence's first token.",
         quantiles("vllm:time_to_first_token_seconds")),
        ("Time between tokens", "s", "From one token of a sequence to the next.",
         quantiles("vllm:inter_token_latency_seconds")),
        ("Whole requests", "s", "From a request's arrival to a sequence's end.",
         quantiles("vllm:e2e_request_latency_seconds")),
        ("Sequences", "short", "With a first token, and without one yet.", [
            ("sum(vllm:num_requests_running{@})", "running"), ("sum(vllm:num_requests_waiting{@})", "waiting"),
        ]),
        ("Responses", "reqps", "By status; streams that fail later are under \"Ends of sequences\".",
         [rate("amoe_gateway_responses_total{@}", "status")]),
        ("Refused or failed", "reqps", "`queue_full` is overload; `no_node`, `node_lost`, `deadline` and `internal` are our fault.",
         [rate("amoe_gateway_refused_total{@}", "kind")]),
        ("Ends of sequences", "short", "By reason.", [rate("vllm:request_success_total{@}", "finished_reason")]),
        ("Resumed", "short", "Sequences that went on elsewhere after their attention node was lost.",
         [("sum(increase(amoe_gateway_sequences_resumed_total{@}[$__rate_interval]))", "resumed")]),
    ]),
    ("Objectives", [
        ("Error budget spent on first tokens", "percentunit", "Share of first tokens later than 2 s; 1 % may be.", [
            ("amoe:first_token_late:ratio_rate5m{@}", "5 min"), ("amoe:first_token_late:ratio_rate1h{@}", "1 h"),
        ]),
        ("Error budget spent between tokens", "percentunit", "Share of tokens more than 0.2 s after the one before; 1 % may be.", [
            ("amoe:next_token_late:ratio_rate5m{@}", "5 min"), ("amoe:next_token_late:ratio_rate1h{@}", "1 h"),
        ]),
        ("Error budget spent on failures", "percentunit", "Share of sequences that failed by our fault; 0.1 % may.", [
            ("amoe:failed:ratio_rate5m{@}", "5 min"), ("amoe:failed:ratio_rate1h{@}", "1 h"),
        ]),
    ]),
    ("Where a step's time goes", [
        ("Attention nodes at work", "percentunit", "Share of time that the device runs layers or LM heads; the rest waits for experts or work.", [
            ("sum by (node) (rate(amoe_attention_layer_seconds_sum{@}[$__rate_interval]))"
             " + sum by (node) (rate(amoe_attention_head_seconds_sum{@}[$__rate_interval]))", "{{node}}"),
        ]),
        ("Expert nodes at work", "percentunit", "Share of time that the device runs experts; the one near 100 % sets the pace.",
         [rate("amoe_expert_run_seconds_sum{@}", "node")]),
        ("Stragglers", "none", "How many times longer than it should an expert node takes, to run and to answer.",
         [("max by (node) (amoe_coordinator_node_slowdown{@})", "{{node}}")]),
        ("Time of a layer run", "s", "Attention nodes, mean.", [mean("amoe_attention_layer_seconds")]),
        ("Time of an expert run", "s", "Expert nodes, mean.", [mean("amoe_expert_run_seconds")]),
        ("Oldest pair", "s", "How long the oldest (row, expert) pair has been queued.",
         [("max by (node) (amoe_expert_oldest_pair_seconds{@})", "{{node}}")]),
        ("Rows per layer run", "short", "Attention nodes, mean: how well work is gathered.", [mean("amoe_attention_run_rows")]),
        ("Pairs per activated expert", "short", "Expert nodes, mean: an expert's weights are read once for so many rows.",
         [mean("amoe_expert_run_pairs_per_expert")]),
        ("Activated experts per run", "short", "Expert nodes, mean.", [mean("amoe_expert_run_experts")]),
    ]),
    ("Queues and memory", [
        ("Queued pairs", "short", "(row, expert) pairs in the μ-queues.",
         [("sum by (node) (amoe_expert_queued_pairs{@})", "{{node}}")]),
        ("Since the last token", "s", "Attention nodes; idle ones send canaries through all layers.",
         [("time() - max by (node) (amoe_attention_last_token_seconds{@} > 0)", "{{node}}")]),
        ("Rows ready for a layer", "short", "Attention nodes.", [("sum by (node) (amoe_attention_ready_rows{@})", "{{node}}")]),
        ("Sequences waiting for admission", "short", "Attention nodes.",
         [("sum by (node) (amoe_attention_sequences_waiting{@})", "{{node}}")]),
        ("KV blocks in use", "percentunit", "Attention nodes.", [
            ("1 - sum by (node) (amoe_attention_kv_blocks_free{@}) / sum by (node) (amoe_attention_kv_blocks{@})", "{{node}}"),
        ]),
        ("Tokens found in the prefix cache", "percentunit", "Of those that sequences came with, by attention node.", [
            ("sum by (node) (rate(amoe_attention_cached_tokens_total{@}[$__rate_interval])) / "
             "sum by (node) (rate(amoe_attention_prompt_tokens_total{@}[$__rate_interval]))", "{{node}}"),
        ]),
        ("Preemptions and cancellations", "short", "Sequences that gave way for want of KV blocks, or whose client went away.", [
            rate("amoe_attention_preemptions_total{@}", "node", "{{node}} preempted"),
            rate("amoe_attention_cancelled_total{@}", "node", "{{node}} cancelled"),
        ]),
        ("Pairs", "short", "Computed, and dropped from queues because nobody waits for them any more.", [
            rate("amoe_expert_pairs_total{@}", "node", "{{node}}"),
            rate("amoe_expert_pairs_cancelled_total{@}", "node", "{{node}} cancelled"),
        ]),
    ]),
    ("Control plane", [
        ("Leaders", "none", "One, or the cluster goes on with what it knows.", [("sum(amoe_coordinator_leader{@})", "leaders")]),
        ("Members", "none", "By role and health, as the leader sees them.",
         [("sum by (role, health) (amoe_coordinator_members{@}) > 0", "{{role}} {{health}}")]),
        ("Lost and silent members", "short", "", [
            ("sum(amoe_coordinator_members_silent{@})", "silent"),
            ("sum(increase(amoe_coordinator_members_lost_total{@}[$__rate_interval])) or vector(0)", "lost"),
        ]),
        ("Plans", "none", "Epochs of the plan that serves and of the one that is prepared (0: none), and where nodes are.", [
            ("max by (plan) (amoe_coordinator_plan_epoch{@})", "{{plan}}"),
            ("max by (node) (amoe_attention_plan_epoch{@})", "{{node}}"),
            ("max by (node) (amoe_expert_plan_epoch{@})", "{{node}}"),
        ]),
        ("What came of planning", "short", "By outcome.", [rate("amoe_coordinator_plans_total{@}", "outcome")]),
        ("Experts by node", "short", "Experts, over all layers, that a node is to run.",
         [("max by (node) (amoe_coordinator_leased_experts{@})", "{{node}}")]),
        ("Memory of experts", "bytes", "Resident experts.", [("sum by (node) (amoe_expert_resident_bytes{@})", "{{node}}")]),
        ("State store", "s", "Time of a call, p99.", [
            ("histogram_quantile(0.99, sum by (le, call) (rate(amoe_coordinator_store_seconds_bucket{@}[$__rate_interval])))",
             "{{call}}"),
        ]),
        ("State store answers", "none", "", [("min(amoe_coordinator_store_up{@})", "up")]),
    ]),
    ("Links", [
        ("Links up", "none", "", [
            ("sum by (node) (amoe_links_up{@})", "{{node}}"),
            ("sum by (node) (amoe_link_nccl_pairs{@})", "{{node}}, rows by NCCL"),
        ]),
        ("Rows sent", "Bps", "Bytes of rows.", [rate("amoe_link_row_bytes_sent_total{@}", "node")]),
        ("Frames sent", "short", "", [rate("amoe_link_frames_sent_total{@}", "node")]),
        ("Frames that had to wait", "short", "The receiver had granted no more.",
         [rate("amoe_link_credit_refusals_total{@}", "node")]),
        ("Dials that failed", "short", "", [rate("amoe_link_dials_failed_total{@}", "node")]),
        ("Malformed frames", "short", "Links closed because the peer sent what no peer should.",
         [rate("amoe_link_frames_malformed_total{@}", "node")]),
    ]),
    ("Processes", [
        ("Processor", "percentunit", "Cores in use.", [
            ("rate(process_cpu_seconds_total{@}[$__rate_interval]) and on (instance) amoe_build_info", "{{instance}}"),
        ]),
        ("Memory", "bytes", "Resident.", [
            ("process_resident_memory_bytes{@} and on (instance) amoe_build_info", "{{instance}}"),
        ]),
        ("Versions", "none", "Processes by version.",
         [("count by (role, version) (amoe_build_info{@})", "{{role}} {{version}}")]),
    ]),
]


def query(text):
    # A selector that has labels of its own gets the namespace after them.
    return text.replace("{@}", f"{{{NAMESPACE}}}").replace("@", NAMESPACE)


def panel(number, position, title, unit, description, queries):
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": position,
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 8, "lineWidth": 1, "showPoints": "never"}},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + nth),
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "expr": query(text),
                "legendFormat": legend,
                "range": True,
            }
            for nth, (text, legend) in enumerate(queries)
        ],
    }


def panels():
    number, y = 0, 0
    for title, row in ROWS:
        number += 1
        yield {
            "id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
        }
        y += 1
        for nth, content in enumerate(row):
            number += 1
            x = nth * WIDTH % COLUMNS
            yield panel(number, {"h": HEIGHT, "w": WIDTH, "x": x, "y": y}, *content)
            if x + WIDTH == COLUMNS or nth + 1 == len(row):
                y += HEIGHT


def board():
    return {
        "uid": "amoe",
        "title": "amoe",
        "description": "Written by deploy/observability/generate.py; a change made here is lost.",
        "tags": ["amoe", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "annotations": {"list": []},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "namespace", "label": "Namespace", "type": "query",
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "query": "label_values(amoe_build_info, namespace)", "refresh": 2,
                    "multi": True, "includeAll": True, "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
            ],
        },
        "panels": list(panels()),
    }
