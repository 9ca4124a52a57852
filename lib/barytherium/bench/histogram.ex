defmodule Barytherium.Bench.Histogram do
  @moduledoc false
  # Times in microseconds, counted in classes of 6 % of their value, by any number of processes.

  import Bitwise

  # Up to 2 to the power of this many microseconds, which is 12 days.
  @exponents 40
  @classes 16 * (@exponents - 2)

  @type t :: {:counters.counters_ref(), largest :: :atomics.atomics_ref()}

  @spec new() :: t()
  def new, do: {:counters.new(@classes, [:write_concurrency]), :atomics.new(1, [])}

  @spec add(t(), integer()) :: :ok
  def add({counters, largest}, microseconds) do
    time = max(microseconds, 0)
    :counters.add(counters, class(time) + 1, 1)
    raise_to(largest, time, :atomics.get(largest, 1))
  end

  defp raise_to(_largest, time, known) when time <= known, do: :ok

  defp raise_to(largest, time, known) do
    case :atomics.compare_exchange(largest, 1, known, time) do
      :ok -> :ok
      other -> raise_to(largest, time, other)
    end
  end

  defp class(value) when value < 16, do: value

  defp class(value) do
    exponent = min(exponent(value, 0), @exponents - 1)
    (exponent - 3) * 16 + (value >>> (exponent - 4) &&& 15)
  end

  defp exponent(1, exponent), do: exponent
  defp exponent(value, exponent), do: exponent(value >>> 1, exponent + 1)

  # The largest value of a class.
  defp value(class) when class < 16, do: class
  defp value(class), do: ((17 + rem(class, 16)) <<< (div(class, 16) - 1)) - 1

  @doc "The time that each part of all times does not exceed; nil if there are none."
  @spec quantiles(t(), [float()]) :: nil | [non_neg_integer()]
  def quantiles({counters, largest}, parts) do
    counts = for class <- 0..(@classes - 1), do: {class, :counters.get(counters, class + 1)}
    all = counts |> Enum.map(&elem(&1, 1)) |> Enum.sum()
    most = :atomics.get(largest, 1)
    if all > 0, do: for(part <- parts, do: min(quantile(counts, ceil(all * part)), most))
  end

  defp quantile([{class, count} | _counts], left) when count >= left, do: value(class)
  defp quantile([{_class, count} | counts], left), do: quantile(counts, left - count)
end
