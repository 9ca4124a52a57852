defmodule DarwinFeed.Report do
  @moduledoc "Says every two seconds what has come, and whether the feed is well."
  use GenServer

  alias Barytherium.{Client, Consumer, Histogram}

  @every 2_000

  def start_link(consumer), do: GenServer.start_link(__MODULE__, consumer)

  @impl true
  def init(consumer), do: {:ok, consumer, @every}

  @impl true
  def handle_info(:timeout, consumer) do
    for client <- Consumer.clients(consumer), feed <- Client.feeds(client) do
      IO.puts("-- #{text(feed)}; #{inspect(Client.health(client))}")
    end

    {:noreply, consumer, @every}
  end

  defp text(%{messages: messages, missing: missing, to_start: to_start}) do
    late = Histogram.quantile(to_start, 0.99) || 0
    "#{messages} messages, #{missing} missing, 99 % handled within #{late} us"
  end
end
