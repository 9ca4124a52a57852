defmodule Barytherium.Consumer.Options do
  @moduledoc false
  # The options of a consumer.

  alias Barytherium.Client.Options, as: ClientOptions
  alias Barytherium.Client.Outbound
  alias Barytherium.Consumer.Retry
  alias Barytherium.{Schema, Secret}

  @schema [
    subscribe: {
      {:is, &__MODULE__.subscriptions?/1,
       "a destination, {destination, options}, or a list of these"},
      nil,
      "What to subscribe to: a destination (`\"/queue/a\"`), `{destination, options}`, or a list of " <>
        "these."
    },
    init_arg:
      {{:secret, {:is, &__MODULE__.any?/1, "any term"}}, nil,
       "The argument of the callback `init/1`."},
    concurrency:
      {:count, 1,
       "The number of connections. Each has processes of its own. For a queue they are competing " <>
         "consumers: messages are handled in parallel, and in no particular order. Not with " <>
         "`:client_id`, which a broker accepts only once."},
    handlers:
      {:count, 1,
       "The number of processes that handle the messages of a connection. Each message goes to one that is " <>
         "free, so they are handled in parallel, and in no particular order, or by `:key`. Each process has its own state, " <>
         "and all callbacks but those for messages are called in each of them. For slow callbacks: dealing out a " <>
         "message costs some microseconds. Without `:key` it is not for `ack: :client`, and with STOMP 1.0 all " <>
         "messages go to one of them, except on RabbitMQ."},
    key: {
      {:is, &__MODULE__.key?/1, "{:header, name}, :destination or {:body, offset, length}"},
      nil,
      "With `:handlers`: messages with the same key are handled by the same process, in their order. " <>
        "`{:header, name}`, `:destination`, or `{:body, offset, length}` for a part of the body, which is within its " <>
        "first 64 KiB. Messages without it have the same key. The receive loop deals them out. With `ack: :client` each " <>
        "message has to be acknowledged or refused, by its callback or with `Barytherium.Client.ack/3`: that is written " <>
        "when all messages before it are, by whichever process. Not with `:concurrency`."
    },
    batch_size:
      {:count, nil,
       "How many messages `handle_batch/2` gets. It gets fewer after `:batch_timeout`, and when the consumer stops or " <>
         "the connection ends. With `:handlers` each process collects one, and `:prefetch` has to be enough for one of them " <>
         "to be full. Default: what has arrived together, 256 at most."},
    batch_timeout:
      {:time, 1_000, "With `:batch_size`: milliseconds after the first message of a batch."},
    max_handling:
      {:limit, :infinity,
       "Milliseconds. If a handler is in the same callback for longer, `Barytherium.Client.health/1` tells."},
    shutdown:
      {:time, 10_000,
       "Milliseconds that stopping may take: handling what has arrived, acknowledging, and " <>
         "disconnecting."},
    on_exception:
      {{:one_of, [:continue, :restart]}, :continue,
       "What to do after a callback has raised and its message was refused."},
    max_attempts: {
      :mark,
      :infinity,
      "How often a message is given to its callback, as long as that raises. Deliveries that the broker has counted " <>
        "are among them. Then follows `:on_exhausted`. With `:infinity` the broker delivers it again. The last attempt " <>
        "at a batch is made with each message by itself. Not with `ack: :client`, nor, except on RabbitMQ, with STOMP 1.0."
    },
    retry_delay: {
      {:is, &__MODULE__.delay?/1, "two times in milliseconds: {shortest, longest}"},
      {100, 10_000},
      "With `:max_attempts`: the shortest and the longest time before the next attempt, in milliseconds. It doubles " <>
        "with each. The messages behind it wait, unless other handlers take them."
    },
    on_exhausted: {
      {:is, &__MODULE__.exhausted?/1,
       ":nack, {:publish, destination}, or a function with two arguments"},
      :nack,
      "What becomes of a message after `:max_attempts`. `:nack`: it is refused, and not delivered again: RabbitMQ " <>
        "discards it, or moves it to its dead-letter exchange, ActiveMQ moves it to its dead-letter queue. `{:publish, " <>
        "destination}`: a copy goes there, and the message is acknowledged, in one transaction if the broker can do " <>
        "that. A function gets the message and the exception (`{kind, value}` for an exit or a throw, `:delivered_too_often` " <>
        "if the broker has counted them all), and returns `:ack`, `:nack` or `:noreply`."
    },
    nack_headers: {
      {:is, &ClientOptions.headers?/1, "a list of {name, value}"},
      [],
      "Headers of every NACK. With `[{\"requeue\", \"false\"}]` RabbitMQ does not deliver the message " <>
        "again, but discards it or moves it to its dead-letter exchange."
    }
  ]

  # Those that go to the handlers as they are.
  @of_handlers [
    :on_exception,
    :nack_headers,
    :handlers,
    :key,
    :max_handling,
    :batch_size,
    :batch_timeout
  ]

  # A consumer handles what has arrived in batches of up to 256 messages.
  @prefetch 256

  @spec schema() :: Schema.t()
  def schema, do: @schema

  @spec docs() :: String.t()
  def docs, do: Schema.docs(@schema)

  @spec subscription_docs() :: String.t()
  def subscription_docs, do: Schema.docs(subscription_schema())

  @spec subscription_schema() :: Schema.t()
  def subscription_schema do
    Keyword.update!(ClientOptions.subscription_schema(), :prefetch, fn {type, _default, text} ->
      {type, @prefetch, text}
    end)
  end

  @doc "Checks all options, also those for the client."
  # `move` is for `Barytherium.Consumer.Retry`.
  @spec settings!(module(), keyword(), function()) :: map()
  def settings!(module, opts, move) do
    check_callbacks!(module)
    {options, rest} = Schema.split(opts, @schema)
    {name, rest} = Enum.split_with(rest, &match?({:name, _name}, &1))

    Outbound.check_headers!(:nack, options.nack_headers)

    for {name, _value} <- rest, name in [:ack, :prefetch, :durable, :receipt] do
      raise ArgumentError,
            "option #{inspect(name)} is one of a subscription: subscribe: {destination, #{name}: ...}"
    end

    # A misspelt option may be the reason why another one is missing.
    ClientOptions.check_known!(rest, Keyword.keys(@schema))

    unless options.subscribe,
      do: raise(ArgumentError, "option :subscribe is missing: the destination of the messages")

    client =
      rest
      |> ClientOptions.settings!()
      |> Map.put(:subscriptions, subscriptions(options.subscribe))

    if options.handlers > 1 and options.key == nil,
      do: Enum.each(client.subscriptions, &check_parallel!/1)

    if options.concurrency > 1 and options.key != nil do
      raise ArgumentError,
            "option :key: with :concurrency a broker gives messages of a key to several connections"
    end

    if options.concurrency > 1 and rest[:client_id] != nil do
      raise ArgumentError,
            "option :client_id: with :concurrency there are several connections, and a broker takes one"
    end

    if options.concurrency > 1 and is_binary(rest[:spool]) do
      raise ArgumentError,
            "option :spool: with :concurrency there are several clients, and a directory is for one"
    end

    check_batches!(module, options, client.subscriptions)
    check_attempts!(options.max_attempts, client.subscriptions)

    worker =
      options
      |> Map.take(@of_handlers)
      |> Map.merge(%{module: module, init_arg: Secret.new(options.init_arg)})
      |> Map.put(:retry, Retry.new(options, move))
      |> Map.put(:most_left, most_left(client.subscriptions))

    client = Map.put(client, :consumer, worker)
    Map.merge(options, %{name: name, client: client})
  end

  defp check_callbacks!(module) do
    Code.ensure_loaded(module)

    unless function_exported?(module, :handle_message, 2) or
             function_exported?(module, :handle_batch, 2) do
      raise ArgumentError,
            "#{inspect(module)} has neither handle_message/2 nor handle_batch/2"
    end
  end

  # As the client keeps them.
  defp subscriptions(subscribe) do
    for {subscription, number} <- subscribe |> List.wrap() |> Enum.with_index(1), into: %{} do
      {destination, opts} = destination(subscription)

      subscription =
        opts
        |> Schema.all!(subscription_schema())
        |> ClientOptions.check_limits!()
        |> Map.merge(%{destination: destination, number: number})

      ClientOptions.check_headers!(:subscribe, subscription.headers)
      {number, %{subscription: subscription, pid: nil, target: nil, monitor: nil, ending: false}}
    end
  end

  # Messages whose callback raised, and that cannot be refused without being lost, stay unacknowledged. After so
  # many, or as many as the broker sends ahead, the connection ends.
  @most_left 32

  defp most_left(subscriptions) do
    limits =
      for {_number, %{subscription: %{ack: ack, prefetch: prefetch}}} <- subscriptions,
          ack != :auto and prefetch != :infinity,
          do: prefetch

    Enum.min([@most_left | limits])
  end

  # An acknowledgement of what is given up would cover messages before it.
  defp check_attempts!(:infinity, _subscriptions), do: :ok

  defp check_attempts!(_limit, subscriptions) do
    if Enum.any?(subscriptions, &match?({_number, %{subscription: %{ack: :client}}}, &1)),
      do: raise(ArgumentError, "option :max_attempts: not with ack: :client"),
      else: :ok
  end

  defp check_batches!(_module, %{batch_size: nil}, _subscriptions), do: :ok

  defp check_batches!(module, %{batch_size: size, handlers: handlers}, subscriptions) do
    unless function_exported?(module, :handle_batch, 2),
      do: raise(ArgumentError, "option :batch_size: #{inspect(module)} has no handle_batch/2")

    # Then one of the handlers has all of its batch, however they share the messages.
    needed = handlers * (size - 1) + 1

    for {_number, %{subscription: %{ack: ack, prefetch: prefetch, destination: destination}}} <-
          subscriptions,
        ack != :auto and prefetch < needed do
      raise ArgumentError,
            "option :batch_size: a broker sends #{prefetch} messages of #{destination} ahead (:prefetch), and has to " <>
              "send #{needed}"
    end

    :ok
  end

  defp check_parallel!({_number, %{subscription: %{ack: :client}}}) do
    raise ArgumentError,
          "option :handlers: with ack: :client an acknowledgement would cover messages that other " <>
            "processes have not handled; with the option :key it waits for them"
  end

  defp check_parallel!(_other), do: :ok

  defp destination({destination, opts}), do: {destination, opts}
  defp destination(destination), do: {destination, []}

  @doc false
  def subscriptions?([]), do: false
  def subscriptions?(list) when is_list(list), do: Enum.all?(list, &subscription?/1)
  def subscriptions?(value), do: subscription?(value)

  defp subscription?({destination, opts}), do: subscription?(destination) and is_list(opts)
  defp subscription?(destination), do: is_binary(destination) and destination != ""

  @doc false
  def any?(_value), do: true

  @doc false
  def delay?({shortest, longest}),
    do: Schema.valid?(:time, longest) and shortest in 0..longest//1

  def delay?(_other), do: false

  @doc false
  def exhausted?({:publish, destination}), do: Schema.valid?(:string, destination)
  def exhausted?(what), do: what == :nack or is_function(what, 2)

  # What the receive loop inflates at once.
  @farthest 64 * 1024

  @doc false
  def key?(:destination), do: true
  def key?({:header, name}), do: is_binary(name) and name != ""

  def key?({:body, at, length}),
    do:
      is_integer(at) and is_integer(length) and at >= 0 and length > 0 and
        at + length <= @farthest

  def key?(_other), do: false
end
