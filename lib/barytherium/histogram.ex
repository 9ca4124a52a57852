defmodule Barytherium.Histogram do
  @moduledoc """
  How long something took, how often: what `Barytherium.Client.feeds/1` returns as `:to_start` and `:to_ack`.

  A histogram is a list of `{microseconds, count}`, the shortest times first. Times are counted in classes whose width is
  6 % of their value; `microseconds` is the largest time of the class. Histograms count from the start of a client on, so
  read one now and then, and look at what has come since:

      iex> before = [{15, 2}, {103, 1}]
      iex> now = [{15, 2}, {103, 3}, {2047, 1}]
      iex> Barytherium.Histogram.since(now, before)
      [{103, 2}, {2047, 1}]
      iex> Barytherium.Histogram.quantile(now, 0.5)
      103
  """

  import Bitwise

  # Up to 2 to the power of this many microseconds, which is 12 days.
  @exponents 40
  @classes 16 * (@exponents - 2)

  @type t :: [{microseconds :: non_neg_integer(), count :: pos_integer()}]

  @typedoc false
  # What counts, for any number of processes.
  @type counters :: {:counters.counters_ref(), largest :: :atomics.atomics_ref()}

  @doc "The time that this part of all times, `0.99` for example, does not exceed; `nil` if there are none."
  @spec quantile(t(), float()) :: nil | non_neg_integer()
  def quantile([], _part), do: nil

  def quantile(histogram, part) do
    all = histogram |> Enum.map(&elem(&1, 1)) |> Enum.sum()
    find(histogram, max(ceil(all * part), 1))
  end

  defp find([{time, count} | _histogram], left) when count >= left, do: time
  defp find([{_time, count} | histogram], left), do: find(histogram, left - count)

  @doc "What has come since `earlier`, a histogram of the same subscription."
  @spec since(t(), t()) :: t()
  def since(histogram, earlier) do
    counted = Map.new(earlier)

    for {time, count} <- histogram,
        more = count - Map.get(counted, time, 0),
        more > 0,
        do: {time, more}
  end

  @doc false
  @spec new() :: counters()
  def new, do: {:counters.new(@classes, [:atomics]), :atomics.new(1, [])}

  @doc false
  @spec add(counters(), integer()) :: :ok
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

  @doc false
  @spec read(counters()) :: t()
  def read({counters, _largest}) do
    for class <- 0..(@classes - 1),
        count = :counters.get(counters, class + 1),
        count > 0,
        do: {value(class), count}
  end

  @doc false
  # As `quantile/2`, several at once, and none above the largest time that there was.
  @spec quantiles(counters(), [float()]) :: nil | [non_neg_integer()]
  def quantiles({_counters, largest} = counters, parts) do
    histogram = read(counters)
    most = :atomics.get(largest, 1)
    if histogram != [], do: for(part <- parts, do: min(quantile(histogram, part), most))
  end
end
