"""Fit Gaussians to many small windows at once, by the Levenberg-Marquardt method of Moré (1978).

The steps, their control and the limits are those of `scipy.optimize.curve_fit`, so that the fits end in the same minima
and give up on the same windows. Numpy only.
"""

from __future__ import annotations

import numpy as np

EVALUATIONS = 300  # of the model, after which a fit fails; a Jacobian counts as one a parameter
TOLERANCE = 1.49012e-8  # relative: of the squared residual's reduction, and of the parameters
FIRST_REACH = 100.0  # the first step is not longer than this times the parameters, scaled by the Jacobian
SLACK = 0.1  # of the reach, by which a step may miss it
SINGULAR = 1e-15  # of the largest eigenvalue


@np.errstate(all="ignore")  # a step that is not finite ends its fit
def fit_gaussians(windows: np.ndarray, shape: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit height * exp(-((y - y0)^2 + (x - x0)^2) / (2 sigma^2)) to each window.

    Args:
        windows: (n, k, k), 0 beyond a window's shape.
        shape: (n, 2) int: rows and columns of each window.
        guess: (n, 4): height, y0, x0, sigma to start from; all but the height in pixels of the window.
    Returns:
        (n, 4) float64, the fitted parameters; (n,) bool, whether the fit converged.
    """
    fitted = guess.astype(np.float64)
    norm, gradient, hessian = _evaluate(fitted, windows, shape)
    converged = np.asarray(~gradient.any(1))  # nothing to improve, as in a window of zeros
    scale = np.zeros_like(fitted)
    reach, damping, evaluations = np.zeros((3, len(fitted)))
    evaluations += 1 + fitted.shape[1]
    rest = np.flatnonzero(~converged & np.isfinite(norm) & (shape.prod(1) >= fitted.shape[1]))
    first = True
    while len(rest):
        # the state of the fits that have not ended; the parameters are scaled by the longest columns of the Jacobian
        at, old, length = fitted[rest], norm[rest], np.sqrt(hessian[rest][:, range(4), range(4)])
        scales = np.maximum(scale[rest], np.where(first & (length == 0), 1, length))
        reaches = reach[rest]
        if first:
            reaches = FIRST_REACH * np.linalg.norm(scales * at, axis=1)
            reaches[reaches == 0] = FIRST_REACH
        values, vectors = np.linalg.eigh(hessian[rest] / (scales[:, :, None] * scales[:, None]))
        values = np.maximum(values, 0)
        along = ((gradient[rest] / scales)[:, None] @ vectors)[:, 0]
        step, dampings = _step(values, along, reaches, damping[rest])
        size = np.linalg.norm(step, axis=1)
        if first:
            reaches = np.minimum(reaches, size)
        trial = at - (vectors @ step[:, :, None])[:, :, 0] / scales
        new, new_gradient, new_hessian = _evaluate(trial, windows[rest], shape[rest])
        evaluations[rest] += 1

        # the reduction of the squared residual against the prediction decides on the step and the next reach
        linear, damped = (values * step**2).sum(1) / old**2, dampings * size**2 / old**2
        predicted, slope = linear + 2 * damped, -(linear + damped)
        actual = np.where(0.1 * new < old, 1 - (new / old) ** 2, -1.0)
        ratio = np.divide(actual, predicted, out=np.zeros_like(actual), where=predicted != 0)
        shrink = np.where(actual >= 0, 0.5, 0.5 * slope / (slope + 0.5 * actual))
        shrink[(0.1 * new >= old) | (shrink < 0.1)] = 0.1
        poor, good = ratio <= 0.25, (ratio >= 0.75) | (dampings == 0)
        reach[rest] = reaches = np.where(
            poor, shrink * np.minimum(reaches, 10 * size), np.where(good, 2 * size, reaches)
        )
        damping[rest] = np.where(poor, dampings / shrink, np.where(good, dampings / 2, dampings))
        scale[rest] = scales
        better = ratio >= 1e-4
        taken = rest[better]
        fitted[taken], norm[taken] = trial[better], new[better]
        gradient[taken], hessian[taken] = new_gradient[better], new_hessian[better]

        small = (np.abs(actual) <= TOLERANCE) & (predicted <= TOLERANCE) & (ratio <= 2)
        small |= reaches <= TOLERANCE * np.linalg.norm(scales * fitted[rest], axis=1)
        converged[rest] = small | ~gradient[rest].any(1)
        ended = converged[rest] | (evaluations[rest] >= EVALUATIONS) | np.isnan(ratio)
        evaluations[taken] += fitted.shape[1]
        rest = rest[~ended]
        first = False
    return fitted, converged


def _evaluate(at: np.ndarray, windows: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the residual's norm (n,), half the gradient of its square (n, 4), and J^T J (n, 4, 4)."""
    height, y0, x0, sigma = at.T[:, :, None]
    pixel = np.arange(windows.shape[1])
    y, x = pixel - y0, pixel - x0
    rows = np.where(pixel < shape[:, :1], np.exp(-(y**2) / (2 * sigma**2)), 0)
    columns = np.where(pixel < shape[:, 1:], np.exp(-(x**2) / (2 * sigma**2)), 0)
    jacobian = np.empty((len(at), 4, len(pixel), len(pixel)))
    hill = np.multiply(rows[:, :, None], columns[:, None], out=jacobian[:, 0])
    steep = hill * (height / sigma**2)[:, :, None]
    y, x = y[:, :, None], x[:, None]
    np.multiply(steep, y, out=jacobian[:, 1])
    np.multiply(steep, x, out=jacobian[:, 2])
    np.multiply(steep, (y**2 + x**2) / sigma[:, :, None], out=jacobian[:, 3])
    residual = (height[:, :, None] * hill - windows).reshape(len(at), pixel.size**2, 1)
    flat = jacobian.reshape(len(at), 4, pixel.size**2)
    hessian = flat @ flat.transpose(0, 2, 1)
    norm = np.where(np.isfinite(hessian).all((1, 2)), np.linalg.norm(residual[:, :, 0], axis=1), np.inf)
    return norm, (flat @ residual)[:, :, 0], hessian


def _step(
    values: np.ndarray, along: np.ndarray, reach: np.ndarray, damping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the step to subtract (n, 4), about as long as the reach at most, and its damping (n,).

    Args:
        values: (n, 4), the eigenvalues of the scaled J^T J.
        along: (n, 4), the scaled gradient in its eigenvectors.
        reach: (n,), the longest step.
        damping: (n,), that of the last step.
    """
    regular = values > SINGULAR * values[:, -1:]
    whole = np.divide(along, values, out=np.zeros_like(along), where=regular)
    size = np.linalg.norm(whole, axis=1)
    over = size - reach
    damped = over > SLACK * reach
    steepness = np.linalg.norm(along, axis=1)
    low = np.where(regular.all(1), over / reach * size**2 / (along**2 / values**3).sum(1), 0)
    high = steepness / reach
    damping = np.minimum(np.maximum(damping, low), high)
    damping = np.where(damping == 0, steepness / np.where(size > 0, size, 1), damping)
    done = ~damped
    for last in range(10):
        damping = np.where(damping == 0, 0.001 * high, damping)
        step = along / (values + damping[:, None])
        size, before = np.linalg.norm(step, axis=1), over
        over = size - reach
        done |= (np.abs(over) <= SLACK * reach) | ((low == 0) & (over <= before) & (before < 0))
        if done.all() or last == 9:
            break
        newton = damping + over / reach * size**2 / (along**2 / (values + damping[:, None]) ** 3).sum(1)
        low = np.where(over > 0, np.maximum(low, damping), low)
        high = np.where(over < 0, np.minimum(high, damping), high)
        damping = np.where(done, damping, np.maximum(low, newton))
    return np.where(damped[:, None], step, whole), np.where(damped, damping, 0)
