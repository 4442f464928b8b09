"""Why a test score differs from what validation promised: one file a reason."""
