"""What scores and p-values mean; NumPy alone, for the client as well as for both halves."""

from service.scores.complexity import DEFAULT_CODEC as DEFAULT_CODEC
from service.scores.complexity import Codec as Codec
from service.scores.complexity import codec_bytes as codec_bytes
from service.scores.complexity import complexity as complexity
from service.scores.conformal import BoolArray as BoolArray
from service.scores.conformal import FloatArray as FloatArray
from service.scores.conformal import benjamini_hochberg as benjamini_hochberg
from service.scores.conformal import benjamini_hochberg_threshold as benjamini_hochberg_threshold
from service.scores.conformal import conditional_level as conditional_level
from service.scores.conformal import highest_normal_score as highest_normal_score
from service.scores.conformal import p_values as p_values
from service.scores.conformal import smallest_conditional_alpha as smallest_conditional_alpha
from service.scores.conformal import smallest_p_value as smallest_p_value
from service.scores.definitions import CALIBRATED as CALIBRATED
from service.scores.definitions import COMPLEXITY as COMPLEXITY
from service.scores.definitions import DEFINITIONS as DEFINITIONS
from service.scores.definitions import LOG_PROB as LOG_PROB
from service.scores.definitions import ScoreName as ScoreName
from service.scores.definitions import p_value_column as p_value_column
from service.scores.histogram import score_histogram as score_histogram
from service.scores.likelihood import bits_per_dim as bits_per_dim
from service.scores.likelihood import log_mean_exp as log_mean_exp
from service.scores.likelihood import negative_log_likelihood as negative_log_likelihood
from service.scores.outliers import OutlierMethod as OutlierMethod
from service.scores.outliers import outlier_share as outlier_share
from service.scores.outliers import score_summary as score_summary
