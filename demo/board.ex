defmodule Demo.Board do
  @moduledoc """
  A consumer of the messages, which it gets inflated, in two processes that keep those of a train in order, and what it knows
  of the trains. The table is read by whoever shows it.
  """
  use Barytherium.Consumer,
    subscribe:
      {"/topic/darwin.pushport-v16", ack: :auto, inflate: true, sequence: "SequenceNumber"},
    handlers: 2,
    key: {:header, "train"}

  alias Demo.Trains

  @rows 14

  @doc "The table, and the counter of messages and of bytes."
  def new, do: {:ets.new(:board, [:public, read_concurrency: true]), :counters.new(2, [])}

  @impl true
  def handle_message(frame, {table, counters} = board) do
    :ets.insert(table, Trains.departure(frame.body))
    :counters.add(counters, 1, 1)
    :counters.add(counters, 2, byte_size(frame.body))
    {:ack, board}
  end

  @doc "The next departures, as lines of 76 characters at most."
  def lines({table, _counters}) do
    rows = table |> :ets.tab2list() |> Enum.sort_by(&elem(&1, 2)) |> Enum.take(@rows)
    [row({"Train", "To", "Planned", "Expected", "Platform"}) | Enum.map(rows, &departure/1)]
  end

  defp departure({uid, to, planned, planned, platform}),
    do: row({uid, to, planned, "on time", platform})

  defp departure({uid, to, planned, expected, platform}),
    do: row({uid, to, planned, expected, platform})

  defp row({train, to, planned, expected, platform}) do
    widths = [10, 20, 12, 12, 8]

    [train, to, planned, expected, platform]
    |> Enum.zip(widths)
    |> Enum.map_join(fn {text, width} -> String.pad_trailing(text, width) end)
    |> String.trim_trailing()
  end

  @doc "The expected departures of a few trains, as sentences."
  def sentences({table, _counters}, count) do
    for {uid, to, planned, expected, platform} <-
          table |> :ets.tab2list() |> Enum.take_random(count) do
      late = if planned == expected, do: "on time", else: "planned #{planned}"
      "#{uid} to #{to} leaves at #{expected} (#{late}), platform #{platform}"
    end
  end
end
