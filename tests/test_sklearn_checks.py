import pytest
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
import pytest, time
from sklearn.utils.estimator_checks import parametrize_with_checks
from gradflow.sklearn import MLPClassifier, MLPRegressor
kw=dict(learning_rate_init=0.02,max_iter=60)
@parametrize_with_checks([MLPClassifier(dtype="float64",**kw),MLPRegressor(dtype="float64",**kw),MLPClassifier(**kw),MLPRegressor(**kw)])
def test_all(estimator, check): check(estimator)
