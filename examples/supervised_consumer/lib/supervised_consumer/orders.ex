defmodule SupervisedConsumer.Orders do
  @moduledoc "Prints the messages of a queue, and says when the connection comes and goes."
  use Barytherium.Consumer, subscribe: "/queue/orders"

  @impl true
  def handle_message(frame, state) do
    IO.puts("order #{frame.body}")
    {:ack, state}
  end

  @impl true
  def handle_connected(info, state) do
    IO.puts("connected to #{info.endpoint}")
    {:ok, state}
  end

  # The consumer connects again by itself.
  @impl true
  def handle_disconnected(error, state) do
    IO.puts("not connected: #{Exception.message(error)}")
    {:ok, state}
  end
end
