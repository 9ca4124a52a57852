defmodule Barytherium.HistogramTest do
  use ExUnit.Case, async: true
  doctest Barytherium.Histogram

  alias Barytherium.Histogram

  test "quantiles are at most 6 % too large, and the largest time is exact" do
    histogram = Histogram.new()
    times = for n <- 1..10_000, do: n * 37
    Enum.each(Enum.shuffle(times), &Histogram.add(histogram, &1))

    for part <- [0.0001, 0.5, 0.9, 0.99, 0.999, 1.0] do
      [found] = Histogram.quantiles(histogram, [part])
      exact = Enum.at(times, ceil(10_000 * part) - 1)
      assert found >= exact and found <= exact * 1.0625, "#{part}: #{found} of #{exact}"
    end

    assert Histogram.quantiles(histogram, [1.0]) == [370_000]
  end

  test "any time has a class, and no time has no quantile" do
    histogram = Histogram.new()
    assert Histogram.quantiles(histogram, [0.5, 1.0]) == nil
    for time <- [-5, 0, 1, 15, 16, 17, 1 <<< 39, 1 <<< 60], do: Histogram.add(histogram, time)
    assert [0, _largest] = Histogram.quantiles(histogram, [0.1, 1.0])
  end

  defp left <<< right, do: Bitwise.bsl(left, right)
end
