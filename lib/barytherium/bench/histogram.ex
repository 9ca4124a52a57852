defmodule Barytherium.Bench.Histogram do
  @moduledoc false
  # Times in microseconds, counted in classes of 6 % of their value, by any number of processes.

  import Bitwise

  # Up to 2 to the power of this many microseconds, which is 12 days.
  @exponents 40
  @classes 16 * (@exponents - 2)

  @type t :: :counters.counters_ref()

  @spec new() :: t()
  def new, do: :counters.new(@classes, [:write_concurrency])

  @spec add(t(), integer()) :: :ok
  def add(histogram, microseconds),
    do: :counters.add(histogram, class(max(microseconds, 0)) + 1, 1)

  defp class(value) when value < 16, do: value

  defp class(value) do
    exponent = min(exponent(value, 0), @exponents - 1)
    (exponent - 3) * 16 + (value >>> (exponent - 4) &&& 15)
  end

  defp exponent(1, exponent), do: exponent
  defp exponent(value, exponent), do: exponent(value >>> 1, exponent + 1)

  # The least value of a class.
  defp value(class) when class < 16, do: class
  defp value(class), do: (16 + rem(class, 16)) <<< (div(class, 16) - 1)

  @doc "The value below which each part of all times lies; nil if there are none."
  @spec quantiles(t(), [float()]) :: nil | [non_neg_integer()]
  def quantiles(histogram, parts) do
    counts = for class <- 0..(@classes - 1), do: {class, :counters.get(histogram, class + 1)}
    all = counts |> Enum.map(&elem(&1, 1)) |> Enum.sum()
    if all > 0, do: for(part <- parts, do: quantile(counts, ceil(all * part)))
  end

  defp quantile([{class, count} | _counts], left) when count >= left, do: value(class)
  defp quantile([{_class, count} | counts], left), do: quantile(counts, left - count)
end
