defmodule DarwinFeed.PushPort do
  @moduledoc "Prints departures from the messages of Darwin's push port."

  # The topic keeps nothing for a client that is away, so acknowledgements would save nothing. Two processes handle the
  # messages, and those about the same train in order.
  use Barytherium.Consumer,
    subscribe:
      {"/topic/darwin.pushport-v16",
       ack: :auto, inflate: true, max_silence: 10_000, sequence: {"SequenceNumber", 10_000_000}},
    handlers: 2,
    key: {:header, "train"}

  require Logger

  alias DarwinFeed.Departures

  @impl true
  def handle_message(%{body: {:compressed, _body, reason}}, state) do
    Logger.error("a message that cannot be inflated: #{reason}")
    {:noreply, state}
  end

  def handle_message(%{body: xml}, state) do
    for departure <- xml |> Departures.parse() |> Enum.take(1) do
      IO.puts("#{departure.train} leaves #{departure.station} at #{departure.time}")
    end

    {:noreply, state}
  end
end
