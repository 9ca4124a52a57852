defmodule Bench.Chart do
  @moduledoc """
  The throughput of the contenders as an SVG of bars, which follows the reader's choice of light or
  dark colours.
  """

  alias Bench.Report

  @bars [
    {"frames/s", "ours", "this library"},
    {"Elixir, frames/s", "elixir", "the best loop in Elixir that we can write"},
    {"splitting Elixir, frames/s", "splitting", "a straightforward loop in Elixir"}
  ]

  # In pixels.
  @width 720
  @label 110
  @longest 470
  @bar 16
  @group 66
  @top 84

  @doc "A group of bars for each of the cases in `names`. The fastest bar of a group has full length."
  def svg(results, names) do
    rounds = Map.new(results)
    groups = names |> Enum.with_index() |> Enum.map(&group(&1, rounds))
    height = @top + @group * length(names) + 10

    """
    <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 #{@width} #{height}" width="#{@width}" \
    height="#{height}" font-family="sans-serif" font-size="13">
    <title>Frames per second from the socket to the callback process</title>
    <style>
      .back { fill: #ffffff } text { fill: #1f2328 }
      .ours { fill: #6639ba } .elixir { fill: #8c959f } .splitting { fill: #b6bfc8 }
      @media (prefers-color-scheme: dark) {
        .back { fill: #0d1117 } text { fill: #e6edf3 }
        .ours { fill: #b083f0 } .elixir { fill: #8b949e } .splitting { fill: #6e7681 }
      }
    </style>
    <rect class="back" width="#{@width}" height="#{height}"/>
    <text x="10" y="22" font-weight="bold">Frames per second by size of the body, one connection</text>
    <text x="#{@width - 10}" y="22" font-size="12" text-anchor="end">each size has a scale of its own</text>
    #{legend()}
    #{groups}</svg>
    """
  end

  defp legend do
    for {{_figure, class, name}, index} <- Enum.with_index(@bars) do
      y = 32 + 15 * index

      """
      <rect class="#{class}" x="10" y="#{y}" width="10" height="10"/>
      <text x="26" y="#{y + 10}" font-size="12">#{name}</text>
      """
    end
  end

  defp group({name, index}, rounds) do
    rates = for {figure, _class, _name} <- @bars, do: Report.median(rounds[name], :"#{figure}")
    top = @top + @group * index

    bars =
      for {{{_figure, class, _name}, rate}, row} <- @bars |> Enum.zip(rates) |> Enum.with_index() do
        y = top + row * (@bar + 2)
        length = max(round(@longest * rate / Enum.max(rates)), 1)

        """
        <rect class="#{class}" x="#{@label}" y="#{y}" width="#{length}" height="#{@bar}"/>
        <text x="#{@label + length + 6}" y="#{y + 13}" font-size="12">#{Report.format(rate)}</text>
        """
      end

    [~s(<text x="10" y="#{top + 31}">#{name}</text>\n) | bars]
  end
end
