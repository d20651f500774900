"""The methods that ours is compared with, each one a pure function of tokens and a thin `Plan` around it."""
