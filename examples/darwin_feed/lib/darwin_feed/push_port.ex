defmodule DarwinFeed.PushPort do
  @moduledoc "Prints the departures of Darwin's push port."

  # The topic keeps nothing for a client that is away, so acknowledgements would save nothing.
  use Barytherium.Consumer, subscribe: {"/topic/darwin.pushport-v16", ack: :auto, inflate: true}

  alias DarwinFeed.Departures

  @impl true
  def handle_message(frame, state) do
    for departure <- Departures.parse(frame.body) do
      IO.puts("#{departure.train} leaves #{departure.station} at #{departure.time}")
    end

    {:noreply, state}
  end
end
