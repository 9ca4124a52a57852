defmodule Barytherium.Client.Backoff do
  @moduledoc false
  # How long to wait before the next attempt to connect: exponential, at random between half of it and
  # all of it, so that clients that lost their broker together do not come back together.

  # After so many doublings of a millisecond the wait is longer than any timer.
  @most_doublings 40

  @enforce_keys [:shortest, :longest]
  defstruct [:shortest, :longest, failures: 0]

  @type t :: %__MODULE__{
          shortest: pos_integer(),
          longest: pos_integer(),
          failures: non_neg_integer()
        }

  @spec new({pos_integer(), pos_integer()}) :: t()
  def new({shortest, longest}), do: %__MODULE__{shortest: shortest, longest: longest}

  @doc "The next wait, in milliseconds."
  @spec next(t()) :: {pos_integer(), t()}
  def next(%__MODULE__{failures: failures} = backoff) do
    wait = min(backoff.shortest * 2 ** min(failures, @most_doublings), backoff.longest)
    {jitter(wait), %{backoff | failures: failures + 1}}
  end

  @doc "Begins anew after what has lived, in milliseconds, at least as long as the longest wait."
  @spec lived(t(), non_neg_integer()) :: t()
  def lived(%__MODULE__{longest: longest} = backoff, time),
    do: if(time >= longest, do: reset(backoff), else: backoff)

  @spec reset(t()) :: t()
  def reset(%__MODULE__{} = backoff), do: %{backoff | failures: 0}

  defp jitter(wait), do: wait - div(wait, 2) + :rand.uniform(div(wait, 2) + 1) - 1
end
