defmodule Barytherium.Bench.Report do
  @moduledoc false
  # What a run has measured, as a table, an object of JSON, or a picture.

  alias Barytherium.Tail.Report

  @typedoc "How many messages, and in how many milliseconds that was."
  @type counted :: {non_neg_integer(), pos_integer()}

  @type measured :: %{
          published: counted(),
          consumed: counted(),
          size: pos_integer(),
          seconds: [non_neg_integer()],
          latency: nil | [non_neg_integer()]
        }

  @doc "Names of the quantiles in `:latency`, which are in microseconds."
  @spec quantiles() :: [{String.t(), float()}]
  def quantiles, do: [{"p50", 0.5}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1.0}]

  @spec table(measured()) :: iolist()
  def table(measured) do
    rows = [
      row("published", measured.published, measured),
      row("consumed", measured.consumed, measured)
    ]

    latency = for {{name, _part}, time} <- times(measured), do: "  #{name} #{time / 1000} ms"
    latency = if latency == [], do: [], else: ["latency  ", latency, "\n"]
    [rows, latency]
  end

  defp row(name, {count, milliseconds}, measured) do
    rate = Report.rate(count, count * measured.size, milliseconds)
    [String.pad_trailing(name, 11), Report.plural(count, "message"), ", ", rate, "\n"]
  end

  defp times(%{latency: nil}), do: []
  defp times(%{latency: times}), do: Enum.zip(quantiles(), times)

  @spec json(measured()) :: String.t()
  def json(measured) do
    rate = fn {count, milliseconds} -> Float.round(count * 1000 / milliseconds, 1) end
    {{published, _time}, {consumed, _later}} = {measured.published, measured.consumed}

    latency =
      Enum.map_join(times(measured), ",", fn {{name, _part}, time} -> ~s("#{name}":#{time}) end)

    ~s({"published":#{published},"consumed":#{consumed},"size":#{measured.size},) <>
      ~s("published_per_second":#{rate.(measured.published)},"consumed_per_second":#{rate.(measured.consumed)},) <>
      ~s("each_second":[#{Enum.join(measured.seconds, ",")}],"latency_us":{#{latency}}})
  end

  @width 640
  @height 240
  @edge 40

  @doc "The messages that were consumed in each second."
  @spec svg(measured()) :: String.t()
  def svg(%{seconds: seconds}) do
    most = Enum.max([1 | seconds])
    step = (@width - 2 * @edge) / max(length(seconds), 1)

    bars =
      for {count, index} <- Enum.with_index(seconds) do
        height = round(count * (@height - 2 * @edge) / most)
        x = round(@edge + index * step)

        ~s(<rect x="#{x}" y="#{@height - @edge - height}" width="#{max(round(step) - 1, 1)}" height="#{height}"/>\n)
      end

    """
    <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 #{@width} #{@height}" font-family="sans-serif" font-size="12">
    <rect width="100%" height="100%" fill="#fff"/>
    <text x="#{@edge}" y="#{@edge - 12}">messages consumed in each second, at most #{Report.number(most)}</text>
    <g fill="#2563eb">
    #{bars}</g>
    <path d="M#{@edge} #{@height - @edge}H#{@width - @edge}" stroke="#111"/>
    <text x="#{@edge}" y="#{@height - @edge + 16}">1 s</text>
    <text x="#{@width - @edge}" y="#{@height - @edge + 16}" text-anchor="end">#{length(seconds)} s</text>
    </svg>
    """
  end
end
