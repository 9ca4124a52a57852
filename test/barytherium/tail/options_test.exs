defmodule Barytherium.Tail.OptionsTest do
  use ExUnit.Case, async: true

  alias Barytherium.Tail.Options

  test "a URL and destinations" do
    {:ok, options} = Options.parse(~w(stomp://me:pw@h:1/queue/a%20b?host=v /topic/b /topic/b c))
    assert options.destinations == ["/queue/a b", "/topic/b", "c"]
    assert options.target.url.() == "stomp://me:pw@h:1"
    assert %{vhost: "v", secure: false, login: nil} = options.target
    assert %{seconds: :infinity, count: :infinity, format: :pretty, ack: false} = options

    {:ok, options} = Options.parse(~w(stomp+ssl://me@[::1] /queue/a))
    assert %{secure: true, login: "me", vhost: "/"} = options.target
    assert options.target.url.() == "stomp+ssl://me@[::1]"
    assert options.destinations == ["/queue/a"]
  end

  test "without a URL the feed is its own, and ends" do
    assert {:ok, %{target: nil, destinations: [_], seconds: 10}} = Options.parse([])
    assert {:ok, %{seconds: 3}} = Options.parse(~w(--seconds 3))
  end

  test "options" do
    args = ~w(--header a:b --header c:d:e --format json --count 2 --save f --all --ack --insecure)
    {:ok, options} = Options.parse(["stomp+ssl://h/a" | args])
    assert options.headers == [{"a", "b"}, {"c", "d:e"}]
    assert %{format: :json, count: 2, save: "f", all: true, ack: true, insecure: true} = options
    assert Options.parse(~w(--help)) == :help
    assert Options.parse(~w(-h --count 0)) == :help
  end

  test "mistakes have a reason and a sentence" do
    for {args, reason, sentence} <- [
          {~w(--frobnicate), {:unknown, "--frobnicate"}, ~r/unknown option --frobnicate/},
          {~w(--count), {:unknown, "--count"}, ~r/its value is missing/},
          {~w(--count x), {:invalid, "--count", "x"}, ~r/--count cannot be x/},
          {~w(--count 0), {:outside, :count, 0}, ~r/--count cannot be 0/},
          {~w(--seconds 0), {:outside, :seconds, 0}, ~r/--seconds cannot be 0/},
          {~w(--rate 0), {:outside, :rate, 0}, ~r/--rate cannot be 0/},
          {~w(--seconds 4294968), {:outside, :seconds, 4_294_968}, ~r/--seconds cannot be/},
          {~w(--rate 1000001), {:outside, :rate, 1_000_001}, ~r/--rate cannot be/},
          {~w(--size 104857601), {:outside, :size, 104_857_601}, ~r/--size cannot be/},
          {~w(--format xml), {:format, "xml"}, ~r/--format is pretty, json or raw/},
          {~w(--header a), {:header, "a"}, ~r/--header is NAME:VALUE/},
          {~w(--header :a), {:header, ":a"}, ~r/--header is NAME:VALUE/},
          {~w(--header id:1), {:header, "id:1"}, ~r/set anyway/},
          {~w(stomp+ssl://h/a --cacertfile /no), {:no_file, "/no"}, ~r/there is no file/},
          {~w(stomp://h/a --insecure), {:not_secure, :insecure}, ~r/--insecure is for TLS/},
          {~w(stomp://h/a?x=1&host=v), {:query, "x"}, ~r/\?x= is nothing/},
          {~w(http://h/a), :url, ~r/not a URL of the form/},
          {~w(stomp:///a), :url, ~r/not a URL/},
          {~w(stomp://h:0/a), :url, ~r/not a URL/},
          {~w(stomp://h:65536/a), :url, ~r/not a URL/},
          {~w(stomp://h/%zz), :url, ~r/not a URL/},
          {~w(stomp://h/%ff), :url, ~r/not a URL/},
          {~w(stomp://h), :no_destination, ~r/no destination/},
          {~w(stomp://h/), :no_destination, ~r/no destination/}
        ] do
      assert Options.parse(args) == {:error, reason}
      assert Options.message(reason) =~ sentence
    end
  end

  test "no message and no inspected options show the password" do
    for args <- [["http://me:hunter2@h/a"], ["stomp://h/a", "stomp://me:hunter2@h/a"]] do
      assert {:error, reason} = Options.parse(args)
      refute Options.message(reason) =~ "hunter2"
    end

    {:ok, options} = Options.parse(["stomp://me:hunter2@h/a"])
    refute inspect(options) =~ "hunter2"
  end

  test "a destination in the URL may have any character" do
    for {url, destination} <- [
          {"stomp://h/topic/a.#", "/topic/a.#"},
          {"stomp://me:p%23@h/topic/PRICE.>?host=v", "/topic/PRICE.>"},
          {"stomp://h/topic/a.*.{b}", "/topic/a.*.{b}"},
          {"stomp://h/queue/with blank", "/queue/with blank"},
          {"stomp://h/queue/a%2Fb", "/queue/a/b"}
        ] do
      assert {:ok, %{destinations: [^destination]}} = Options.parse([url])
    end
  end
end
