defmodule Barytherium.Tail.Watching do
  @moduledoc false
  # How a destination can be watched, and what that does to its messages.
  #
  #   * `:copies` - a topic: the broker sends a copy, and nobody else notices;
  #   * `:browse` - a queue of ActiveMQ Classic, whose messages are read where they are;
  #   * `:deliver` - any other queue: its messages are delivered here, and given back at the end. Brokers count
  #     that, and some discard a message that was delivered too often. So no more of them are taken than are shown;
  #   * `:acknowledge` - with `--ack`: they are removed.

  alias Barytherium.Tail.{Options, Report}

  # What is shown of queues without `--count`. It has to fit on a screen or two.
  @shown 20

  # Headers of SUBSCRIBE that make a durable subscription of a topic, which is a queue.
  @durable ~w(durable x-queue-name activemq.subscriptionName durable-subscription-name)

  @type way :: :copies | :browse | :deliver | :acknowledge

  @doc "How to watch `destination` on the broker that calls itself `server`."
  @spec way(String.t(), nil | String.t(), Options.t()) :: way()
  def way(destination, server, options) do
    cond do
      options.ack -> :acknowledge
      topic?(destination) and not durable?(options.headers) -> :copies
      String.starts_with?(server || "", "ActiveMQ/") -> :browse
      true -> :deliver
    end
  end

  defp topic?("/topic/" <> _name), do: true
  defp topic?("/exchange/" <> _name), do: true
  defp topic?(_queue), do: false

  defp durable?(headers), do: Enum.any?(headers, fn {name, _value} -> name in @durable end)

  @doc "How many messages are shown in all, if all destinations are watched in these ways."
  @spec count([way()], Options.t()) :: pos_integer() | :infinity
  def count(ways, %{count: :infinity}), do: if(:deliver in ways, do: @shown, else: :infinity)
  def count(_ways, %{count: count}), do: count

  @doc """
  The options of `Barytherium.Client.subscribe/3`, besides `:headers`. `share` is how many messages of the destination
  may be shown.
  """
  @spec subscription(way(), pos_integer() | :infinity) :: keyword()
  def subscription(:acknowledge, _share), do: []
  def subscription(:copies, _share), do: [ack: :auto]
  def subscription(:browse, _share), do: [ack: :auto]
  def subscription(:deliver, share), do: [prefetch: share]

  @doc "Headers of SUBSCRIBE for this way."
  @spec headers(way()) :: Barytherium.Frame.frame_headers()
  def headers(:browse), do: [{"browser", "true"}]
  def headers(_way), do: []

  @doc "Divides `count` messages among the destinations that are delivered."
  @spec shares([{String.t(), way()}], pos_integer() | :infinity) :: %{String.t() => pos_integer()}
  def shares(_destinations, :infinity), do: %{}

  def shares(destinations, count) do
    queues = for {destination, :deliver} <- destinations, do: destination
    {each, more} = {div(count, max(length(queues), 1)), rem(count, max(length(queues), 1))}

    for {queue, index} <- Enum.with_index(queues), into: %{} do
      {queue, max(each + if(index < more, do: 1, else: 0), 1)}
    end
  end

  @doc "What the user should know before it happens, or nil."
  @spec warning([{String.t(), way()}], nil | String.t(), pos_integer() | :infinity) ::
          nil | String.t()
  def warning(destinations, server, count) do
    case for {destination, :deliver} <- destinations, do: destination do
      [] ->
        nil

      queues ->
        "Up to #{Report.plural(count, "message")} of #{Enum.join(queues, ", ")} will be delivered to this program, " <>
          "and given back when it ends. " <> counted(server)
    end
  end

  defp counted("RabbitMQ" <> _version) do
    "RabbitMQ counts that: a quorum queue discards a message, or moves it to its dead-letter exchange, that was " <>
      "delivered more often than its limit (20 by default from 4.0 on)"
  end

  defp counted(_server),
    do: "The broker may count that, and discard a message that was delivered too often"
end
