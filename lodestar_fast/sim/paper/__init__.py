"""The published system as a policy of the simulator: `lodestar-paper`, to be measured against.

Source: the public artifact of arXiv 2606.00946 (gangmuk/Lodestar, June 2026), read, not run; names
in `code` are its own. It runs in virtual time only, on what the proxy would know too.

    pick()  one row for each instance -> z-scores -> MLP 128-128-128 -> predicted -TTFT -> largest
    tick()  each 10 s finished requests become rows; each 30 s, if 1,000 are new, a round of
            training from scratch, whose weights serve once its simulated time is over

What is taken over, by part of the artifact:

- Features (`encoding.py`): ten, or 21 with the one-hot of the GPU, which its experiments switch on
  (INCLUDE_GPU_FEATURES=1); here where a fleet has more than one GPU, else it would be constant.
  A GPU that is not in its vocabulary counts as GPU-L3c, as an unknown node label does there.
- Normalisation (`data_normalizer.py`): z-scores, one mean and deviation for each instance feature,
  pooled over all instances and rows of the window, anew each round; a constant is left as it is.
- Model (`reward_predictor.py`): see model.py. Dropout stays on while it serves, for nothing on the
  serving path of the artifact calls eval().
- Rows (`handle_flush`): only of requests that ended well, at their end, in flushes of at least 100
  every 10 s; those with a TTFT above 15 s are dropped.
- Rounds (`online_train_routine`): every 30 s, from 1,000 new rows on; rows that come while it
  trains are not counted as new. Window: the new rows, the last 5,000 before them (FIFO), the first
  5,000 of the stored replay order, at random up to 10,000. The store keeps the newest 10,000.
- Decision (`handle_infer`): argmax, no exploration (EXPLORATION_RATE=0 in its main runs), no
  out-of-distribution test (ENABLE_FALLBACK=0), no near ties (0.0). Saturation filter with the
  paper's values: if the mean KV use is above 0.8 and the best hit is worth more than 100 tokens,
  only the 2 instances that the prompt's prefix hashes to are asked.
- Until the first round is over: its prefix heuristic `prefix_cache_1`, our `prefix_cache`.
- Prefix index (`prefixcacheindexer/hash.go`): see index.py.
- Train/serve skew: both counts of requests in flight are 0 in every row that is served, and real,
  the request itself included, in the rows that are trained on; so are the prompt tokens waiting.

`lodestar-paper-mended` is the same without that skew and with dropout off while serving: what the
design could do, against what its code does.

Where the record is silent or depends on the setting, chosen in its favour:

- The first round needs 1,000 rows. The artifact wants 5,000, which its runs load from an offline
  file at the start; a fresh fleet has no such file, and 5,000 rows would take minutes to come.
- A round takes TRAINING_RATE multiply-adds a second: no duration was published. It is what a core
  does with torch, and the artifact's forward pass over every instance of every row is counted.
- Weights and statistics change when a round ends, at once. In the artifact the network that serves
  is the one being trained, from random weights on.
- No time is charged for its remote call (10 to 300 ms in older logs), none fails at 500 ms, no log
  line is lost in a flush, and token counts of router and engine agree.
- Index: blocks of 16 tokens for its blocks of one (hits are whole percents anyway), and 250,000
  tokens for each eight instances, as it is configured for 7 and for 15.
- Key of the saturation filter: the first 80 tokens; it is tuned to each workload, 82 for this one.
- Prefix features of instances without a prefix cache are 0, as for its V100s, by flag, not name.
"""
