"""What each number in a record is called, means, looks like, and whether more of it is better.

The numbers stand in tables by topic (`TOPICS`), so that a table stays readable. A name that ends in
`_se` is the standard error, within one run, of the number before it; it is no column of its own.
"""

from bayesify.experiments.report.column import LESS, MORE, Column

QUALITY: dict[str, Column] = {
    "accuracy": Column(
        "Acc %", "percent", MORE, "share of examples whose most probable class is the true one"
    ),
    "exact_match": Column(
        "Exact %", "percent", MORE, "share of examples with every label on the right side of 0.5"
    ),
    "label_accuracy": Column(
        "Labels %", "percent", MORE, "share of labels on the right side of 0.5"
    ),
    "rmse": Column(
        "RMSE", "number", LESS, "root mean squared error of the mean, in the target's units"
    ),
    "nll": Column(
        "NLL",
        "number",
        LESS,
        "mean negative log of the averaged predictive at the truth, nats per example; "
        "in regression of its density in the target's units",
    ),
    "crps": Column(
        "CRPS",
        "number",
        LESS,
        "continuous ranked probability score: squared distance between the predictive's and the "
        "truth's distribution function, integrated, in the target's units",
    ),
    "ece": Column(
        "ECE %",
        "percent",
        LESS,
        "mean gap between confidence and accuracy of the top label, over 15 equal-width bins",
    ),
    "adaptive_ece": Column(
        "aECE %", "percent", LESS, "the same gap over 15 bins that hold equally many predictions"
    ),
    "mce": Column(
        "MCE %", "percent", LESS, "the largest such gap of any of the 15 equal-width bins"
    ),
    "label_ece": Column(
        "ECE %",
        "percent",
        LESS,
        "mean gap between probability and frequency of each label, over 15 equal-width bins",
    ),
    "brier": Column(
        "Brier", "number", LESS, "squared error of the probabilities, summed over classes"
    ),
    "label_brier": Column(
        "Brier", "number", LESS, "squared error of the probabilities, averaged over labels"
    ),
    "aurc": Column(
        "AURC ‰",
        "permille",
        LESS,
        "area under the risk-coverage curve: share of errors among the most confident predictions, "
        "averaged over how many are kept, in thousandths",
    ),
    "mean_entropy": Column(
        "Entropy", "number", None, "mean entropy of the predictive, nats: how spread it is"
    ),
    "coverage90": Column(
        "Cov90 %",
        "percent",
        0.9,
        "share of targets inside the central 90 % interval of the predictive (of a Gaussian with "
        "the same moments where the predictive gives moments only); 90 is best",
    ),
    "interval_error": Column(
        "IntErr %",
        "percent",
        LESS,
        "mean absolute gap between nominal and observed coverage of central intervals",
    ),
    "sharpness": Column(
        "Spread", "number", None, "root mean predictive variance, in the target's units"
    ),
}
"""How good the predictions of known data are, and how honest."""

_SCORES = {
    "": ("", "minus the entropy of the predictive (minus its variance in regression)"),
    "_mutual_information": ("MI ", "minus the mutual information of prediction and weights"),
    "_max_prob": ("MP ", "the largest probability"),
}

FOREIGN: dict[str, Column] = {
    f"ood_{name}{score}": Column(f"{prefix}{title}", "percent", best, definition.format(of))
    for score, (prefix, of) in _SCORES.items()
    for name, title, best, definition in (
        (
            "auroc",
            "AUROC %",
            MORE,
            "chance that a known-kind (ID) example looks more familiar than a foreign (OOD) one; "
            "the score is {}",
        ),
        (
            "aupr",
            "AUPR %",
            MORE,
            "average precision of ranking by {}, ID as positive class",
        ),
        (
            "fpr95",
            "FPR95 %",
            LESS,
            "share of OOD examples taken for ID when 95 % of ID are accepted, by {}",
        ),
    )
}
"""Telling data of the known kind from others."""

_ATTACKS = {
    "fgsm": ("FGSM", "under an attack of one gradient step"),
    "pgd": ("PGD", "under an attack of many projected gradient steps"),
    "transfer": ("Tran", "under that attack made on another network"),
}

ATTACKS: dict[str, Column] = {
    "attack_eps": Column(
        "Eps",
        "budget",
        None,
        "largest size of the attacks, of pixels in [0, 1]; where inputs are no images, in units of "
        "what the model sees",
    ),
    **{
        f"{attack}_{name}": Column(f"{title} {short}", kind, best, f"{what} {how}, at that size")
        for attack, (title, how) in _ATTACKS.items()
        for name, short, kind, best, what in (
            ("accuracy", "%", "percent", MORE, "accuracy"),
            ("nll", "NLL", "number", LESS, "negative log likelihood, nats per example,"),
        )
    },
    "worst_accuracy": Column(
        "Worst %", "percent", MORE, "share of examples that are right under all the attacks made"
    ),
}
"""Inputs changed on purpose."""

CORRUPTION: dict[str, Column] = {
    "corrupted_accuracy": Column(
        "Corr %", "percent", MORE, "accuracy, averaged over kinds and severities of corruption"
    ),
    "corrupted_nll": Column(
        "Corr NLL", "number", LESS, "NLL, nats per example, averaged in the same way"
    ),
    "corrupted_ece": Column(
        "Corr ECE", "percent", LESS, "calibration error in %, averaged in the same way"
    ),
}
"""Inputs changed by noise, blur and the like."""

MEMBERSHIP: dict[str, Column] = {
    "membership_auc": Column(
        "MIA AUC",
        "percent",
        0.5,
        "chance (%) that a training example has a lower loss than another: a guess of membership; "
        "50 is best, nothing leaks",
    ),
    "membership_tpr1": Column(
        "MIA@1%",
        "fine percent",
        0.01,
        "share (%) of members that this attack finds while accusing 1 % of others; 1 is best",
    ),
    "membership_tpr01": Column(
        "MIA@.1%", "fine percent", 0.001, "the same while accusing 0.1 % of others; 0.1 is best"
    ),
    "membership_auc_confidence": Column(
        "by conf", "percent", 0.5, "AUC (%) of the same attack by the largest probability"
    ),
    "membership_auc_entropy": Column(
        "by entr", "percent", 0.5, "AUC (%) of the same attack by the entropy"
    ),
    "membership_auc_mutual_information": Column(
        "by MI", "percent", 0.5, "AUC (%) of the same attack by the mutual information"
    ),
    "lira_auc": Column(
        "LiRA AUC",
        "percent",
        0.5,
        "AUC (%) of the likelihood-ratio attack, which fits shadow models; 50 is best",
    ),
    "lira_tpr1": Column(
        "LiRA@1%", "fine percent", 0.01, "share (%) of members it finds at 1 % false accusations"
    ),
    "lira_tpr01": Column(
        "LiRA@.1%",
        "fine percent",
        0.001,
        "share (%) of members it finds at 0.1 % false accusations",
    ),
}
"""What the predictions give away about the training data."""

CERTIFICATES: dict[str, Column] = {
    "certificate": Column(
        "Bound %",
        "percent",
        LESS,
        "PAC-Bayes upper bound on the Gibbs risk (the error of one weight sample, on average), "
        "kl form",
    ),
    "certificate_mcallester": Column("McA %", "percent", LESS, "the same bound in McAllester form"),
    "certificate_catoni": Column("Catoni %", "percent", LESS, "the same bound in Catoni's form"),
    "gibbs_risk": Column(
        "Gibbs %", "percent", LESS, "error of one weight sample, on the certifying data"
    ),
    "gibbs_test_risk": Column(
        "GTest %", "percent", LESS, "error of one weight sample, on the held-out data"
    ),
    "certificate_kl": Column(
        "KL",
        "number",
        None,
        "divergence of the posterior from the prior, nats: what the bound pays",
    ),
    "certificate_n": Column("Cert n", "count", None, "examples that the bound is made from"),
    "far_confidence": Column(
        "Far %",
        "percent",
        LESS,
        "largest probability (%) infinitely far from the data, mean over directions",
    ),
    "far_confident_share": Column(
        "Far>99 %", "percent", LESS, "share of directions where that limit exceeds 0.99"
    ),
}
"""What can be proved, and what is said where there are no data."""

COST: dict[str, Column] = {
    "trainable_parameters": Column(
        "Trained", "count", LESS, "numbers that the method's own training changes"
    ),
    "stored_parameters": Column("Stored", "count", LESS, "numbers that a saved posterior holds"),
    "member_parameters": Column(
        "Member", "count", LESS, "numbers that one more member or sample adds"
    ),
    "disk_bytes": Column("Disk", "bytes", LESS, "size of the saved posterior"),
    "peak_memory_bytes": Column(
        "Memory",
        "bytes",
        None,
        "peak while fitting: of the accelerator's allocator, or on a CPU the growth of the process",
    ),
    "fit_seconds": Column("Fit", "seconds", LESS, "wall-clock time of the whole fit"),
    "seconds_per_epoch": Column("Epoch", "seconds", LESS, "wall-clock time of one epoch"),
    "seconds_per_step": Column("Step", "seconds", LESS, "wall-clock time of one training step"),
    "flops_per_step": Column(
        "StepFLOP", "flops", LESS, "floating-point operations of one training step"
    ),
    "flops_per_prediction": Column(
        "PredFLOP",
        "flops",
        LESS,
        "floating-point operations to predict one example, all weight samples",
    ),
    "milliseconds_per_prediction": Column(
        "Predict", "milliseconds", LESS, "time to predict one example, all weight samples"
    ),
    "num_samples": Column("Samples", "count", None, "weight samples per prediction"),
}
"""Columns of `record["cost"]`, in the order of the table."""

TOPICS: dict[str, tuple[str, dict[str, Column]]] = {
    "quality": ("Quality", QUALITY),
    "foreign": ("Foreign data", FOREIGN),
    "attacks": ("Attacks", ATTACKS),
    "corruption": ("Corrupted data", CORRUPTION),
    "membership": ("Membership: what leaks", MEMBERSHIP),
    "certificates": ("Certificates and far away", CERTIFICATES),
    "cost": ("Cost", COST),
}
"""The tables of a group, in the page's order: heading and columns."""

METRICS: dict[str, Column] = {
    **QUALITY,
    **FOREIGN,
    **ATTACKS,
    **CORRUPTION,
    **MEMBERSHIP,
    **CERTIFICATES,
}
"""Columns of `record["metrics"]`, in the order of the tables."""

BRIEF: dict[str, tuple[str, ...]] = {
    "quality": (
        *("accuracy", "exact_match", "rmse", "nll", "crps", "ece", "label_ece", "brier"),
        *("coverage90", "ood_auroc", "ood_fpr95"),
    ),
    "robustness and privacy": (
        *("pgd_accuracy", "corrupted_nll", "membership_auc", "lira_auc", "certificate"),
    ),
    "cost": (
        *("trainable_parameters", "stored_parameters", "disk_bytes", "peak_memory_bytes"),
        *("fit_seconds", "seconds_per_epoch", "milliseconds_per_prediction"),
    ),
}
"""What the terminal shows, by part; the page has every number."""


def column(name: str) -> Column:
    """The column of a metric or a cost; a number nobody described keeps its own name.

    >>> column("accuracy").title, column("new").title
    ('Acc %', 'new')
    """
    return METRICS.get(name) or COST.get(name) or Column(name, "number", None, "")


def topic_of(name: str) -> str:
    """The topic that a number stands in; one that nobody described is taken for quality.

    >>> topic_of("pgd_nll"), topic_of("disk_bytes"), topic_of("new")
    ('attacks', 'cost', 'quality')
    """
    return next((topic for topic, (_, names) in TOPICS.items() if name in names), "quality")
