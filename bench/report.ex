defmodule Bench.Report do
  @moduledoc """
  Figures of several rounds: median, lowest and highest.

  A round is a keyword list of figures. All rounds of a case have the same figures.
  """

  @doc "Prints the figures of a case."
  def print(name, rounds) do
    figures =
      for {figure, values} <- columns(rounds) do
        {median, low, high} = spread(values)
        "#{figure} #{format(median)} (#{format(low)} to #{format(high)})"
      end

    IO.puts("#{String.pad_trailing(name, 26)} #{Enum.join(figures, ", ")}")
  end

  @doc "All cases as tab-separated values."
  def tsv(results) do
    lines =
      for {name, rounds} <- results, {figure, values} <- columns(rounds) do
        {median, low, high} = spread(values)
        Enum.join([name, figure, length(values), median, low, high], "\t") <> "\n"
      end

    ["case\tfigure\trounds\tmedian\tlowest\thighest\n" | lines]
  end

  @doc "The median of `figure`."
  def median(rounds, figure), do: rounds |> Enum.map(& &1[figure]) |> spread() |> elem(0)

  @doc "The value below which this part of `sorted` lies."
  def quantile(sorted, part), do: Enum.at(sorted, round((length(sorted) - 1) * part))

  @doc "A number with as many digits as say something."
  def format(value) when value >= 1_000_000, do: "#{Float.round(value / 1_000_000, 2)} M"
  def format(value) when value >= 10_000, do: "#{round(value / 1_000)} k"
  def format(value) when value >= 100, do: to_string(round(value))
  def format(value), do: to_string(Float.round(value / 1, 2))

  defp columns(rounds) do
    for {figure, _value} <- hd(rounds), do: {figure, Enum.map(rounds, & &1[figure])}
  end

  defp spread(values) do
    sorted = Enum.sort(values)
    {Enum.at(sorted, div(length(sorted), 2)), hd(sorted), List.last(sorted)}
  end
end
